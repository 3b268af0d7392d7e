package leasehold

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/leasetest"
)

// A judge watches a world: it sees each change of the Lease as it is committed, each request as it is
// sent, and each session. It has its own idea of who may lead, from what the server has stored.
type judge struct {
	sim *sim

	mu        sync.Mutex // protects what follows; may be taken with the server locked, never the other way round
	terms     map[tenureKey]*tenure
	claims    map[claimKey]*simCampaign
	versions  []*tenure // what the Lease showed after each change, nil for nobody
	changed   time.Time // when its holder last did anything
	wait      time.Duration
	sessions  []*simSession   // those that have not been seen to have ended
	bodies    []*simSession   // those whose body runs
	all       int             // sessions so far
	handovers int             // of them, those after another candidate's
	newest    *simSession     // with the greatest token
	lost      int             // sessions so far that were lost
	excused   int             // overlaps so far that nobody is blamed for
	vacated   map[string]bool // whose lease somebody vacates, or has
	turned    time.Time       // when the holder last changed
	peers     []string        // what client-go's electors did that we do not

	faults []string
	lines  []line
}

func newJudge(s *sim) *judge {
	return &judge{sim: s, terms: map[tenureKey]*tenure{}, claims: map[claimKey]*simCampaign{}, vacated: map[string]bool{}}
}

// A tenureKey is a term as the judge tells it from others.
type tenureKey struct {
	uid      types.UID
	identity string
	acquired int64 // microseconds
}

// A claimKey tells who sent a claim, which may take effect long after.
type claimKey struct {
	client   string
	identity string
	acquired int64
}

// A sending is when a write began to be sent.
type sending struct {
	instant               // by its sender's clock
	at      time.Duration // by the world's
}

// A tenure is one term on the server.
type tenure struct {
	tenureKey
	version  uint64       // of the write that began it
	campaign *simCampaign // which claimed it; nil if it was nobody of ours
	elector  *simElector
	session  *simSession
	proven   sending // the last of its writes that took effect

	// seized says that a hand other than its holder's declared the Lease free while it was held, and
	// how. From then on until it hears of that, nothing protects it.
	seized string

	ended bool // somebody else, or its holder, wrote over it
}

// link returns its holder's, nil if it is not a process of this world.
func (t *tenure) link() *link {
	switch {
	case t == nil:
	case t.campaign != nil:
		return t.campaign.link
	case t.elector != nil:
		return t.elector.link
	}
	return nil
}

// trust returns for how long the holder may trust the lease: until the renew deadline has passed since
// its last good write, on any of its clocks.
func (t *tenure) trust() time.Duration {
	now := t.campaign.clock.now()
	return t.campaign.renewDeadline - max(now.mono.Sub(t.proven.mono), now.boot-t.proven.boot)
}

// A simSession is a session and its body.
type simSession struct {
	Session
	campaign *simCampaign
	tenure   *tenure
	running  bool
	lost     bool // seen to be lost
	overran  bool
}

// A line is an entry of the history.
type line struct {
	at     time.Duration
	who    string
	format string
	args   []any
	detail bool
}

func (j *judge) note(who, format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.write(who, format, args...)
}

// detail notes what is only of interest when looking closely.
func (j *judge) detail(who, format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line{j.sim.now(), who, format, args, true})
}

func (j *judge) write(who, format string, args ...any) {
	j.lines = append(j.lines, line{j.sim.now(), who, format, args, false})
}

// fault notes that a guarantee was broken, and ends the world.
func (j *judge) fault(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.blame(format, args...)
}

func (j *judge) blame(format string, args ...any) {
	j.faults = append(j.faults, fmt.Sprintf(format, args...))
	j.write("JUDGE", format, args...)
	j.sim.stop()
}

func (s *sim) failed() bool { return len(s.judge.faults) > 0 }

// story tells what happened: all of it, or what led to the fault found.
func (s *sim) story(all bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d sessions in %v, %d of them lost", s.seed, s.judge.all, s.calm, s.judge.lost)
	for _, f := range s.judge.faults {
		fmt.Fprintf(&b, "\n  FAULT: %s", f)
	}
	for _, c := range s.candidates {
		fmt.Fprintf(&b, "\n  %v", c)
	}
	for _, e := range s.electors {
		fmt.Fprintf(&b, "\n  %v", e)
	}
	for _, st := range s.storms {
		who := "all"
		switch {
		case st.link == holdersLink:
			who = "holder"
		case st.link >= 0:
			who = s.links[st.link].name
		}
		if all || len(s.judge.lines) > 0 && st.from < s.judge.lines[len(s.judge.lines)-1].at {
			fmt.Fprintf(&b, "\n  %10.3fs to %.3fs %s: %v, odds %.2f, reach %v", st.from.Seconds(), st.to.Seconds(), who, st.kind, st.odds, st.reach)
		}
	}
	lines := s.judge.lines
	if !all {
		lines = slices.DeleteFunc(slices.Clone(lines), func(l line) bool { return l.detail && strings.HasPrefix(l.format, "renewed") })
	}
	if few := 60; !all && len(lines) > few {
		lines = lines[len(lines)-few:]
		b.WriteString("\n  ...")
	}
	for _, l := range lines {
		fmt.Fprintf(&b, "\n%16.9f %-10s %s", l.at.Seconds(), l.who, fmt.Sprintf(l.format, l.args...))
	}
	return b.String()
}

// keyOf returns whose term lease shows, and whether it is held.
func keyOf(l *coordinationv1.Lease) (k tenureKey, held bool) {
	if l == nil || l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity == "" {
		return tenureKey{}, false
	}
	return tenureKey{l.UID, *l.Spec.HolderIdentity, micros(l.Spec.AcquireTime)}, true
}

func micros(t *metav1.MicroTime) int64 {
	if t == nil {
		return 0
	}
	return t.UnixMicro()
}

// committed judges a change of the Lease. The server is locked.
func (j *judge) committed(c leasetest.Change) {
	j.mu.Lock()
	defer j.mu.Unlock()
	before, wasHeld := keyOf(c.Old)
	after, held := keyOf(c.New)
	if c.Type == watch.Deleted {
		after, held = tenureKey{}, false
	}
	old := j.terms[before]
	version, _ := strconv.ParseUint(c.New.ResourceVersion, 10, 64)
	candidate, elector := j.sim.process(c.Client)

	if wasHeld && before != after {
		j.tenureEnds(c, old, candidate, held)
	}
	var now *tenure
	if held {
		now = j.terms[after]
		if now == nil {
			now = &tenure{tenureKey: after, version: version, elector: elector}
			if candidate != nil {
				now.campaign = j.claims[claimKey{c.Client, after.identity, after.acquired}]
				if now.campaign == nil {
					j.blame("%s wrote a term that it did not claim", c.Client)
				}
			}
			if elector != nil {
				elector.term = after
			}
			if wasHeld {
				j.taken(old, now)
			}
			j.terms[after] = now
		}
		j.proves(now, c, candidate, elector)
	}
	if before != after {
		j.turned = time.Now()
	}
	j.versions = append(j.versions, now)
	j.sim.holders.Store(now.link())
	j.follow(c, held)
	j.lookAll()
	switch {
	case c.Client == "":
	case !held && wasHeld:
		j.write(c.Client, "freed the lease of %s, version %d", before.identity, version)
	case after != before:
		j.write(c.Client, "took the lease as %s, version %d", after.identity, version)
	default:
		j.lines = append(j.lines, line{j.sim.now(), c.Client, "renewed, version %d", []any{version}, true})
	}
}

// process returns who writes under the name of a client.
func (s *sim) process(client string) (*simCandidate, *simElector) {
	for _, c := range s.candidates {
		if c.name == client {
			return c, nil
		}
	}
	for _, e := range s.electors {
		if e.name == client {
			return nil, e
		}
	}
	return nil, nil
}

// tenureEnds judges the change that ends what old shows.
func (j *judge) tenureEnds(c leasetest.Change, old *tenure, candidate *simCandidate, heldAfter bool) {
	if old == nil {
		return
	}
	old.ended = true
	switch {
	case j.byOthers(c, old.tenureKey, heldAfter):
	case c.Client == "" && c.Type == watch.Deleted:
		j.seize("deleted")
	case c.Client == "" && !heldAfter:
		j.seize("emptied")
	case candidate == nil && c.Client != "" && !heldAfter && (old.elector == nil || old.elector.name != c.Client):
		// client-go releases with a fresh resourceVersion and its memory of who holds the lease: it
		// frees what is another's.
		j.seize("freed by client-go")
		j.peers = append(j.peers, freedAnothers)
	case candidate == nil && !heldAfter && old.elector != nil:
		if e := old.elector; e.working > 0 {
			j.peers = append(j.peers, releasedTooSoon)
		}
		old.elector.proven = time.Time{} // it promises nothing any more
	case old.elector != nil && old.elector.leading:
		j.peers = append(j.peers, ledOn)
	case candidate != nil && !heldAfter:
		switch x := old.session; {
		case old.campaign == nil || old.campaign.simCandidate != candidate:
			j.blame("%s freed the lease of %s", c.Client, old.identity)
		case x != nil && x.running:
			j.blame("%s: released while the body runs", old.campaign.label)
		}
	}
}

// seize notes that a hand declared the lease free, so that it is nobody's: neither of who is written
// there, nor of somebody before who has not heard yet that his is another's.
func (j *judge) seize(how string) {
	for _, t := range j.terms {
		if t.campaign == nil || t.trust() > 0 {
			t.seized = cmp.Or(t.seized, how)
		}
	}
}

// taken judges that now took the lease from old, which held it: an own term may be taken at once,
// another's when its holder has done nothing for as long as was recorded, by the clock of who takes it.
func (j *judge) taken(old, now *tenure) {
	if now.campaign == nil || old != nil && old.campaign == now.campaign {
		return
	}
	if c := now.campaign; c.reclaims && old != nil && old.identity == c.identity {
		return
	}
	waited := time.Duration(float64(time.Since(j.changed)) * now.campaign.rate)
	if waited < j.wait-time.Microsecond {
		j.blame("%s took the lease of %s %v after it was renewed for %v", now.campaign.label, old.identity, waited, j.wait)
	}
}

// proves counts a write for the trust of its holder.
func (j *judge) proves(t *tenure, c leasetest.Change, candidate *simCandidate, elector *simElector) {
	stamp := micros(c.New.Spec.RenewTime)
	switch {
	case candidate != nil && (t.campaign == nil || t.campaign.simCandidate != candidate):
		j.blame("%s wrote into the term of %s", c.Client, t.identity)
	case candidate != nil:
		if sent, ok := t.campaign.sent[stamp]; ok && (t.proven.mono.IsZero() || sent.mono.After(t.proven.mono)) {
			t.proven = sent
		}
	case elector != nil:
		elector.term = t.tenureKey
		if sent, ok := elector.sent[stamp]; ok && sent.After(elector.proven) {
			elector.proven = sent
		}
	}
}

// follow notes since when, and for how long, others have to leave the lease alone.
func (j *judge) follow(c leasetest.Change, held bool) {
	duration := time.Duration(0)
	if held && c.New.Spec.LeaseDurationSeconds != nil {
		duration = time.Duration(*c.New.Spec.LeaseDurationSeconds) * time.Second
	}
	if c.Old != nil && c.Type != watch.Deleted && c.Old.Spec.RenewTime.Equal(c.New.Spec.RenewTime) &&
		c.Old.Spec.AcquireTime.Equal(c.New.Spec.AcquireTime) && same(c.Old.Spec.HolderIdentity, c.New.Spec.HolderIdentity) {
		return
	}
	j.changed, j.wait = time.Now(), duration
}

func same[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

// requested judges that k sends a request.
func (j *judge) requested(ctx context.Context, k *simCampaign, verb string) {
	j.mu.Lock()
	if second := int(j.sim.now() / time.Second); second != k.second {
		k.second, k.requests = second, 0
	}
	k.requests++
	limit := 20 + int(4*time.Second/k.renewInterval)
	if k.requests == limit+1 {
		j.blame("%s: more than %d requests within a second", k.label, limit)
	}
	if k.over {
		j.blame("%s: %s after the loop was left", k.label, verb)
	}
	storm := k.requests > limit
	j.lookAll()
	j.mu.Unlock()
	if storm {
		time.Sleep(time.Second) // so that the world goes on to its end
	}
}

// told notes what k knows.
func (j *judge) told(k *simCampaign, l *coordinationv1.Lease) {
	j.mu.Lock()
	defer j.mu.Unlock()
	k.uids[l.UID] = true
	if key, held := keyOf(l); held {
		k.terms[key] = true
	}
}

// claimed judges that k sends a write that shall take the lease.
func (j *judge) claimed(k *simCampaign, identity *string, acquired *metav1.MicroTime) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if x := k.session; x != nil && x.running {
		j.blame("%s: claims the lease while its body runs", k.label)
	}
	key := claimKey{k.name, "", micros(acquired)}
	if identity != nil {
		key.identity = *identity
	}
	j.claims[key] = k
	k.sent[key.acquired] = sending{k.clock.now(), j.sim.now()}
}

// patched judges that k sends a renewal or a release.
func (j *judge) patched(k *simCampaign, data []byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	version, renewed := readPatch(data)
	if version == 0 {
		j.blame("%s: a write without a precondition: %s", k.label, data)
		return
	}
	if renewed != 0 {
		k.sent[renewed] = sending{k.clock.now(), j.sim.now()}
	}
	var about *tenure
	if i := int(version) - firstVersion; i >= 0 && i < len(j.versions) {
		about = j.versions[i]
	}
	switch {
	case about == nil || about.campaign != k:
		j.blame("%s: writes about a term that is not its own: %s", k.label, data)
	case about.session != nil && (about.session.hold.loss() != nil || about.trust() <= 0):
		j.blame("%s: writes after its loss (%v, trust for %v): %s", k.label, about.session.hold.loss(), about.trust(), data)
	case renewed == 0 && about.session != nil && about.session.running:
		j.blame("%s: releases while the body runs", k.label)
	}
}

const firstVersion = 1001 // of leasetest's first change

// begun judges a session that begins.
func (j *judge) begun(k *simCampaign, s Session) *simSession {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.all++
	x := &simSession{Session: s, campaign: k, running: true}
	h := s.Holder()
	for _, t := range j.terms {
		if t.campaign == k && t.identity == h.Identity && t.acquired == h.AcquireTime.UnixMicro() {
			x.tenure = t
		}
	}
	j.write(k.label, "leads, token %d, valid for %v", s.FencingToken(), s.ValidFor())
	switch {
	case x.tenure == nil:
		j.blame("%s: leads without having taken the lease", k.label)
		x.tenure = &tenure{}
	case s.FencingToken() != x.tenure.version:
		j.blame("%s: token %d of a term that began with version %d", k.label, s.FencingToken(), x.tenure.version)
	case s.Err() != nil:
		j.blame("%s: begins a session that has ended: %v", k.label, s.Err())
	case s.ValidFor() < k.renewDeadline/2:
		j.blame("%s: begins with %v of trust, want at least %v", k.label, s.ValidFor(), k.renewDeadline/2)
	}
	x.tenure.session = x
	j.lookAll()
	for _, other := range j.sessions {
		old, next := other.tenure, x.tenure
		if next.version < old.version {
			old, next = next, old // the reply to its claim came after it was seized
		}
		if j.excuses(old, next) {
			j.excused++
			j.write(k.label, "%s was %s and has not heard", old.identity, old.seized)
			continue
		}
		j.blame("two sessions live: %s, for %v more, and %s", other.campaign.label, other.ValidFor(), k.label)
	}
	for _, other := range j.bodies {
		if other.campaign == k {
			j.blame("%s: a second body runs", k.label)
		}
	}
	for _, e := range j.sim.electors {
		// client-go counts from the reply, so that it may lead on beyond what it promises; only its
		// promise counts.
		promise := time.Until(e.proven.Add(e.config.RenewDeadline))
		if t := j.terms[e.term]; e.leading && promise > 0 && t != nil && !j.excuses(t, x.tenure) {
			j.blame("%s leads for %v more, and %s", e.name, promise, k.label)
		}
	}
	if n := j.newest; n != nil && n.campaign.simCandidate != k.simCandidate {
		j.handovers++
	}
	if n := j.newest; n == nil || n.FencingToken() < s.FencingToken() {
		j.newest = x
	} else if x.tenure.seized == "" {
		// A session that was seized before the reply came to the write that began it comes late.
		j.blame("%s: token %d after %d", k.label, s.FencingToken(), n.FencingToken())
	}
	j.sessions = append(j.sessions, x)
	j.bodies = append(j.bodies, x)
	k.session = x
	return x
}

// excuses tells whether a term that still trusts its lease may overlap with one that began later.
func (j *judge) excuses(old, next *tenure) bool {
	switch old.seized {
	case "emptied", "freed by client-go":
		// Who empties the holder's field declares that nobody holds the lease. Nothing in the Lease
		// contradicts that, and the ousted holder stops when it hears of it.
		return true
	case "deleted":
		// With the Lease goes all knowledge of its holder. Who has seen it waits; who has not,
		// because it began later or was cut off, cannot know. client-go does not wait.
		if next.campaign == nil || !next.campaign.uids[old.uid] {
			return true
		}
		// Who has seen the Lease but not this holder waits for as long as its own duration.
		return !next.campaign.terms[old.tenureKey] && old.campaign.renewDeadline > next.campaign.renewDeadline
	}
	return false
}

// bodyEnds notes that a body is about to return.
func (j *judge) bodyEnds(x *simSession, how string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !x.running {
		return
	}
	j.look1(x)
	j.judgeLoss(x)
	x.running = false
	j.bodies = slices.DeleteFunc(j.bodies, func(y *simSession) bool { return x == y })
	j.write(x.campaign.label, "body ends: %s %v", how, x.Err())
}

// judgeLoss judges that a session was lost for a reason.
func (j *judge) judgeLoss(x *simSession) {
	loss := x.hold.loss()
	if loss == nil {
		return
	}
	if text := loss.Error(); !strings.Contains(text, "not renewed") && !strings.Contains(text, "slept") {
		if !x.tenure.ended {
			j.blame("%s: %v, which nobody did", x.campaign.label, loss)
		}
		return
	}
	// What it was trusted for it was trusted for since something was sent, and something went wrong then
	// or later: with the renewals after it, or the clock.
	since := x.hold.until.Load().add(-x.campaign.renewDeadline)
	for _, sent := range x.campaign.sent {
		if sent.instant == since {
			if x.campaign.link.trouble() < sent.at && !x.tenure.ended {
				j.blame("%s: %v, though nothing was wrong since its last renewal at %v", x.campaign.label, loss, sent.at)
			}
			return
		}
	}
	j.blame("%s: it was trusted since it sent nothing", x.campaign.label)
}

// overrun judges a call of WithOverrun's function.
func (j *judge) overrun(s Session) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, x := range j.bodies {
		if x.Session != s {
			continue
		}
		if x.overran || s.hold.loss() == nil {
			j.blame("%s: overrun once more, or without a loss: %v", x.campaign.label, s.Err())
		}
		x.overran = true
		j.write(x.campaign.label, "body overruns")
		return
	}
	j.blame("overrun without a body")
}

// campaignEnded judges a loop that has ended.
func (j *judge) campaignEnded(k *simCampaign, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	k.over = true
	j.write(k.label, "the loop has ended: %v", err)
	if x := k.session; x != nil && x.running {
		j.blame("%s: the loop ended before its body", k.label)
	}
	// A claim whose reply was lost is taken back, unless the API server is out of reach or the claim
	// itself is still on its way.
	if t := j.latest(); t != nil && t.campaign == k && t.session == nil && t.trust() > 0 &&
		k.leaving > 0 && k.link.trouble() < k.leaving && j.sim.faultsOver(k.leaving) {
		j.blame("%s: left a claim standing that it was not told had succeeded", k.label)
	}
	if x := k.session; x != nil && x.Err() == nil {
		j.blame("%s: the loop has ended, its session has not", k.label)
	}
}

// latest returns whose term the Lease shows, nil for nobody's.
func (j *judge) latest() *tenure {
	if len(j.versions) == 0 {
		return nil
	}
	return j.versions[len(j.versions)-1]
}

// leaves notes that the context of a campaign has ended.
func (j *judge) leaves(k *simCampaign) {
	j.mu.Lock()
	defer j.mu.Unlock()
	k.leaving = j.sim.now()
}

// look judges what sessions say of themselves.
func (j *judge) look() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lookAll()
}

func (j *judge) lookAll() {
	j.sessions = slices.DeleteFunc(j.sessions, j.look1)
}

// look1 judges one session, and tells whether it has ended. Which question it asks first varies: each
// has to tell the truth alone.
func (j *judge) look1(x *simSession) (ended bool) {
	var ctxErr, err error
	var valid time.Duration
	ask := []func(){func() { ctxErr = x.Context().Err() }, func() { err = x.Err() }, func() { valid = x.ValidFor() }}
	first := int(j.sim.now()) % 3
	for i := range 3 {
		ask[(first+i)%3]()
	}
	if (err != nil) != (ctxErr != nil) || (err != nil) != (valid <= 0) {
		j.blame("%s: asked from %d on: Err() = %v, ValidFor() = %v, Context().Err() = %v", x.campaign.label, first, err, valid, ctxErr)
	}
	if err != nil {
		if !x.lost && errors.Is(err, ErrLost) {
			x.lost = true
			j.lost++
			j.write(x.campaign.label, "%v", err)
		}
		return true
	}
	if trust := x.tenure.trust(); valid > trust {
		j.blame("%s: valid for %v, but its last write that took effect vouches for %v", x.campaign.label, valid, trust)
	}
	return false
}

// leader returns who leads, "" for nobody.
func (j *judge) leader() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lookAll()
	for _, x := range j.sessions {
		return x.campaign.label
	}
	for _, e := range j.sim.electors {
		if e.leading {
			return e.name
		}
	}
	return ""
}

// windingDown returns whose body still runs and holds the lease though its context has ended, "" for
// nobody's.
func (j *judge) windingDown() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, x := range j.bodies {
		if x.Err() != nil {
			return x.campaign.label
		}
	}
	return ""
}

// wantFree judges that all campaigns, which have ended in fair weather, gave back what was theirs.
func (j *judge) wantFree() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if t := j.latest(); t != nil && t.campaign != nil && (t.session == nil || t.session.hold.loss() == nil) {
		j.blame("%s left the lease held", t.campaign.label)
	}
}

// electorWrites notes that an elector sends a write.
func (j *judge) electorWrites(e *simElector, l *coordinationv1.Lease) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e.sent[micros(l.Spec.RenewTime)] = time.Now()
}

// electorBegins judges that an elector begins to lead.
func (j *judge) electorBegins(e *simElector) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e.leading = true
	e.working++
	j.write(e.name, "leads")
	j.lookAll()
	t := j.terms[e.term]
	for _, x := range j.sessions {
		if t == nil || !j.excuses(x.tenure, t) {
			j.blame("%s leads for %v more, and %s", x.campaign.label, x.ValidFor(), e.name)
		}
	}
	for _, other := range j.sim.electors {
		if other != e && other.leading {
			j.peers = append(j.peers, twoLead)
			j.write(e.name, "leads beside %s", other.name)
		}
	}
}

// electorEnds notes that the context of an elector's work ends.
func (j *judge) electorEnds(e *simElector) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e.leading = false
	j.write(e.name, "leads no more")
}

// electorIdle notes that an elector's work has ended too.
func (j *judge) electorIdle(e *simElector) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e.working--
}

// Known faults of client-go (docs/comparison.md).
const (
	twoLead         = "two lead"
	ledOn           = "it led on after another took the lease"
	freedAnothers   = "it freed another's lease"
	releasedTooSoon = "it released the lease while its work was running"
)
