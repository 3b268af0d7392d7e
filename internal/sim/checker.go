package sim

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/internal/oracle"
	"github.com/leasehold-go/leasehold/leasetest"
)

// A checker checks a world: it sees each change of the Lease as it is committed, each request as it is sent, and each
// session. The oracle judges who may lead; the checker knows when writes were sent and what faults there were.
type checker struct {
	world *World

	// protects what follows; may be taken with the server locked, never the other way round
	mu        sync.Mutex
	oracle    *oracle.Oracle            // of the Lease, or of the first slot's
	oracles   map[string]*oracle.Oracle // one or, with slots, one for each, by the name of the Lease
	terms     map[*oracle.Term]*term
	claimants map[claim]*campaign
	doubtful  []claim    // whose outcome their senders do not know
	twins     bool       // one of them looks like another process's: nothing is judged any more
	bodies    []*session // those whose body runs

	sessions, handovers, lost, excused int // so far

	vacated        map[string]bool // whose lease somebody vacates, or has
	clientGoFaults []string

	violations []string
	lines      []line
}

func newChecker(w *World) *checker {
	c := &checker{
		world: w, terms: map[*oracle.Term]*term{}, claimants: map[claim]*campaign{}, vacated: map[string]bool{},
		oracles: map[string]*oracle.Oracle{},
	}
	c.addOracle(name)
	c.oracle = c.oracles[name]
	return c
}

// addOracle makes an oracle for the Lease of that name.
func (c *checker) addOracle(lease string) {
	c.oracles[lease] = oracle.New(namespace, lease, oracle.Rules{
		Fail:      c.violationLocked,
		Over:      []error{leasehold.ErrLost, leasehold.ErrReleased},
		Candidate: c.rateOf,
		Claimant:  c.claimant,
		MayTake:   mayTake,
		Excuse:    c.excuse,
		Excused:   c.excusedOverlap,
		Late:      func(t *oracle.Term) bool { return c.termOf(t).forced != "" }, // its reply came after that
		Trust:     func(t *oracle.Term) time.Duration { return c.termOf(t).trust() },
	})
}

// lookLocked checks what sessions report about themselves.
func (c *checker) lookLocked() {
	for _, lease := range c.world.leases() {
		c.oracles[lease].Look()
	}
}

// A claim tells which write, which may take effect much later, claims the lease.
type claim struct {
	client   string
	identity string
	acquired int64
}

// A sendTime is when a write began to be sent.
type sendTime struct {
	Instant               // by its sender's clock
	at      time.Duration // by the world's
}

// A term is what the checker knows of one.
type term struct {
	*oracle.Term
	lease    string
	campaign *campaign // which claimed it; nil if it was no candidate
	elector  *elector
	session  *session
	renewed  sendTime // the last of its writes that took effect

	// forced says how somebody else declared the Lease free while it was held; "" if nobody did. From then on until the
	// holder is told, nothing protects it.
	forced string

	asked bool // somebody asked its holder to make way
}

// link returns its holder's, nil if it is not a process of this world.
func (t *term) link() *link {
	switch {
	case t == nil:
	case t.campaign != nil:
		return t.campaign.link
	case t.elector != nil:
		return t.elector.link
	}
	return nil
}

// trust returns for how long the holder may trust the lease: until the renew deadline has passed since its last write
// that took effect, on any of its clocks.
func (t *term) trust() time.Duration {
	if t.campaign == nil {
		return 0
	}
	now := t.campaign.clock.Now()
	return t.campaign.renewDeadline - max(now.Mono.Sub(t.renewed.Mono), now.Boot-t.renewed.Boot)
}

// A session is a session and its body.
type session struct {
	leasehold.Session
	campaign *campaign
	term     *term
	began    time.Duration
	beat     time.Duration // when it last called Beat; at first, when it began
	running  bool
	overran  bool
}

// violation records that a guarantee was violated, and ends the world.
func (c *checker) violation(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.violationLocked(format, args...)
}

func (c *checker) violationLocked(format string, args ...any) {
	if c.twins {
		return
	}
	c.violations = append(c.violations, fmt.Sprintf(format, args...))
	c.log("VIOLATION", format, args...)
	c.world.stop()
}

// rateOf is the oracle's rule Candidate.
func (c *checker) rateOf(client string) (rate float64, ok bool) {
	if k, _ := c.world.process(client); k != nil {
		return k.rate, true
	}
	return 0, false
}

// claimant is the oracle's rule Claimant.
func (c *checker) claimant(client string, k oracle.Key) (any, error) {
	switch candidate, elector := c.world.process(client); {
	case elector != nil:
		return elector, nil
	case candidate == nil:
		return client, nil
	}
	if k := c.claimants[claim{client, k.Identity, k.Acquired}]; k != nil {
		return k, nil
	}
	return nil, fmt.Errorf("%s wrote a term that it did not claim", client)
}

// process returns the process that writes under the name of a client.
func (w *World) process(client string) (*candidate, *elector) {
	for _, c := range w.candidates {
		if c.name == client {
			return c, nil
		}
	}
	for _, e := range w.electors {
		if e.name == client {
			return nil, e
		}
	}
	return nil, nil
}

// mayTake is the oracle's rule MayTake: WithReclaim takes the lease from the same identity at once.
func mayTake(old, next *oracle.Term) bool {
	k, ok := next.Claimant.(*campaign)
	return ok && k != nil && k.reclaims && old.Identity == k.identity
}

// termOf returns what the checker knows of a term, nil for nobody's.
func (c *checker) termOf(t *oracle.Term) *term {
	if t == nil {
		return nil
	}
	known := c.terms[t]
	if known == nil {
		known = &term{Term: t}
		switch holder := t.Claimant.(type) {
		case *campaign:
			known.campaign = holder
		case *elector:
			known.elector = holder
		}
		c.terms[t] = known
	}
	return known
}

// committed checks a change of the Lease. The server is locked.
func (c *checker) committed(change leasetest.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.oracles[change.New.Name]
	if o == nil {
		return // no Lease of this world's
	}
	did := o.Committed(change)
	old, now := c.termOf(did.Old), c.termOf(did.New)
	if did.Began {
		now.lease = change.New.Name
	}
	candidate, elector := c.world.process(change.Client)
	if old != nil && old != now {
		c.termEnds(did, old, candidate)
	}
	if before := change.Old; did.Began && candidate != nil && before != nil && before.Spec.Strategy != nil {
		c.violationLocked("%s: took a lease that has a strategy", candidate.name)
	}
	if now != nil && now.campaign != nil && change.Type != watch.Deleted {
		now.asked = now.asked || now.campaign.asks(change.New)
	}
	if now != nil {
		c.renews(now, oracle.Micros(change.New.Spec.RenewTime), candidate, elector)
	}
	c.world.holderLink.Store(now.link())
	c.lookLocked()
	version := change.New.ResourceVersion
	switch {
	case change.Client == "":
	case old != nil && now == nil:
		c.log(change.Client, "freed the lease of %s, version %s", old.Identity, version)
	case old != now:
		c.log(change.Client, "took the lease as %s, version %s", now.Identity, version)
	default:
		c.lines = append(c.lines, line{c.world.now(), change.Client, renewedLine, []any{version}, true})
	}
}

// termEnds records why a term ends, and checks changes by those who are no candidates.
func (c *checker) termEnds(did oracle.Change, old *term, candidate *candidate) {
	frees := did.New == nil
	switch {
	case did.Client == "observer":
		c.violationLocked("the observer writes: %v", did.Type)
	case did.Client == vacater:
		if !frees || !c.vacated[old.Identity] {
			c.violationLocked("Vacate wrote over the lease of %q", old.Identity)
		}
		c.forceFree(old.lease, "emptied")
	case did.Client == "" && did.Type == watch.Deleted:
		c.forceFree(old.lease, "deleted")
	case did.Client == "" && frees:
		c.forceFree(old.lease, "emptied")
	case candidate == nil && did.Client != "" && frees && (old.elector == nil || old.elector.name != did.Client):
		// client-go releases with a fresh resourceVersion and its memory of the holder: it frees another's lease.
		c.forceFree(old.lease, "freed by client-go")
		c.clientGoFaults = append(c.clientGoFaults, freedAnothers)
	case candidate == nil && frees && old.elector != nil:
		if old.elector.working > 0 {
			c.clientGoFaults = append(c.clientGoFaults, releasedTooSoon)
		}
		old.elector.renewed = time.Time{} // it promises nothing any more
	case old.elector != nil && old.elector.leading:
		c.clientGoFaults = append(c.clientGoFaults, ledOn)
	case candidate != nil && frees:
		if x := old.session; x != nil && x.running {
			c.violationLocked("%s: released while the body runs", old.campaign.label)
		}
	}
}

// forceFree records that somebody declared the lease free. It is nobody's then: not the holder's that was written
// there, nor that of an earlier holder who has not been told yet that another has it.
func (c *checker) forceFree(lease, how string) {
	for _, t := range c.terms {
		if t.lease == lease && (t.campaign == nil || t.trust() > 0) {
			t.forced = cmp.Or(t.forced, how)
		}
	}
}

// renews counts a write for the trust of its holder.
func (c *checker) renews(t *term, stamp int64, candidate *candidate, elector *elector) {
	switch {
	case candidate != nil && t.campaign != nil:
		if sent, ok := t.campaign.sent[stamp]; ok && (t.renewed.Mono.IsZero() || sent.Mono.After(t.renewed.Mono)) {
			t.renewed = sent
		}
	case elector != nil:
		elector.term = t.Term
		if sent, ok := elector.sent[stamp]; ok && sent.After(elector.renewed) {
			elector.renewed = sent
		}
	}
}

// excuse is the oracle's rule Excuse: a term that still trusts its lease may overlap with one that began later if
// somebody declared the lease free, and its holder has not been told.
func (c *checker) excuse(o, n *oracle.Term) string {
	old, next := c.termOf(o), c.termOf(n)
	switch old.forced {
	case "emptied", "freed by client-go":
		// Who empties the holder's field declares that nobody holds the lease. Nothing in the Lease contradicts that,
		// and the ousted holder stops when it is told.
		return old.forced
	case "deleted":
		// With the Lease goes all knowledge of its holder. A candidate that has seen the holder waits; one that has
		// not, because it began later or was cut off, cannot know. client-go does not wait.
		if next.campaign == nil || !next.campaign.uids[old.UID] {
			return old.forced
		}
		// One that has seen the Lease but not this holder waits for as long as its own duration.
		if old.campaign != nil && !next.campaign.told[old.Key] &&
			old.campaign.renewDeadline > next.campaign.renewDeadline {
			return old.forced
		}
	}
	if old.elector != nil && next.elector != nil {
		return twoLead // as electorBegins records
	}
	return ""
}

func (c *checker) excusedOverlap(old, next *oracle.Term, why string) {
	if c.termOf(next).campaign == nil {
		return
	}
	c.excused++
	c.log(c.termOf(next).campaign.label, "%s was %s and has not been told", old.Identity, why)
}

// sessionBegins checks a session that begins.
func (c *checker) sessionBegins(k *campaign, s leasehold.Session) *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions++
	x := &session{Session: s, campaign: k, began: c.world.now(), beat: c.world.now(), running: true}
	c.log(k.label, "leads, token %d, valid for %v", s.FencingToken(), s.ValidFor())
	h := s.Holder()
	o := c.oracles[h.Name]
	before := c.termOf(o.Newest())
	x.term = c.termOf(o.Begin(k.label, s))
	switch {
	case x.term.campaign != k || x.term.Identity != h.Identity || x.term.Acquired != h.AcquireTime.UnixMicro():
		c.violationLocked("%s: leads without having taken the lease", k.label)
	case h.Address != k.address:
		c.violationLocked("%s: leads with the address %q", k.label, h.Address)
	case s.ValidFor() < k.renewDeadline/2:
		c.violationLocked("%s: begins with %v of trust, want at least %v", k.label, s.ValidFor(), k.renewDeadline/2)
	}
	x.term.session = x
	for _, other := range c.bodies {
		if other.campaign == k {
			c.violationLocked("%s: a second body runs", k.label)
		}
	}
	if before != nil && (before.campaign == nil || before.campaign.candidate != k.candidate) {
		c.handovers++
	}
	c.bodies = append(c.bodies, x)
	k.session = x
	return x
}

// bodyEnds records that a body is about to return.
func (c *checker) bodyEnds(x *session, how string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !x.running {
		return
	}
	c.lookLocked()
	if errors.Is(x.Err(), leasehold.ErrLost) {
		c.lost++
	}
	c.checkLoss(x)
	c.checkBeat(x)
	c.checkYield(x)
	x.running = false
	c.bodies = slices.DeleteFunc(c.bodies, func(y *session) bool { return x == y })
	c.log(x.campaign.label, "body ends: %s %v", how, x.Err())
}

// checkLoss checks that a session was lost for a reason.
func (c *checker) checkLoss(x *session) {
	loss := c.world.hooks.Loss(x.Session)
	if loss == nil {
		return
	}
	if stalled(loss) {
		return // checkBeat checks that
	}
	if text := loss.Error(); !strings.Contains(text, "not renewed") && !strings.Contains(text, "slept") {
		if !x.term.Ended && !(strings.Contains(text, "deleted") && x.campaign.toldGone() >= x.began) {
			c.violationLocked("%s: %v, which nobody did", x.campaign.label, loss)
		}
		return
	}
	// Its trust is counted from when a write was sent, and a fault hit the renewals after it, or the clock.
	since := c.world.hooks.TrustedUntil(x.Session).Add(-x.campaign.renewDeadline)
	for _, sent := range x.campaign.sent {
		if sent.Instant == since {
			if x.campaign.link.faultAt() < sent.at && !x.term.Ended {
				c.violationLocked("%s: %v, though there was no fault since its last renewal at %v", x.campaign.label,
					loss, sent.at)
			}
			return
		}
	}
	c.violationLocked("%s: its trust is counted from when it sent nothing", x.campaign.label)
}

// beats calls Beat of a session.
func (c *checker) beats(x *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !x.running {
		return // its end is being checked
	}
	c.checkBeat(x)
	x.beat = c.world.now()
	x.Beat()
}

// stalled reports whether a session was lost because it did not call Beat.
func stalled(loss error) bool {
	return loss != nil && strings.Contains(loss.Error(), "did not call Beat")
}

// checkBeat checks that a session is lost that did not call Beat in time, and no other.
func (c *checker) checkBeat(x *session) {
	limit := x.campaign.beat
	if limit == 0 {
		return
	}
	silent := time.Duration(float64(c.world.now()-x.beat) * x.campaign.rate) // by its own clock
	switch loss := c.world.hooks.Loss(x.Session); {
	case stalled(loss) && silent < limit-time.Millisecond:
		c.violationLocked("%s: %v, but it did %v ago", x.campaign.label, loss, silent)
	case loss == nil && silent > limit*5/4+time.Second:
		c.violationLocked("%s: it has not called Beat for %v, and leads", x.campaign.label, silent)
	}
}

// overrun checks a call of WithOverrun's function.
func (c *checker) overrun(s leasehold.Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.bodies {
		if x.Session != s {
			continue
		}
		if x.overran || c.world.hooks.Loss(s) == nil {
			c.violationLocked("%s: overrun once more, or without a loss: %v", x.campaign.label, s.Err())
		}
		x.overran = true
		c.log(x.campaign.label, "body overruns")
		return
	}
	c.violationLocked("overrun without a body")
}

// ctxEnded records that the context of a campaign has ended.
func (c *checker) ctxEnded(k *campaign) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k.ctxOver = c.world.now()
}

// campaignEnded checks a loop that has ended.
func (c *checker) campaignEnded(k *campaign, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k.over = true
	c.log(k.label, "the loop has ended: %v", err)
	if x := k.session; x != nil && x.running {
		c.violationLocked("%s: the loop ended before its body", k.label)
	}
	// A claim whose reply was lost is taken back, unless the API server cannot be reached or the claim itself is still
	// on its way.
	for _, o := range c.oracles {
		if t := c.termOf(o.Latest()); t != nil && t.campaign == k && t.session == nil && t.trust() > 0 &&
			k.ctxOver > 0 && k.link.faultAt() < k.ctxOver && c.world.faultsOver(k.ctxOver) {
			c.violationLocked("%s: left a claim in place whose success it was not told", k.label)
		}
	}
	if x := k.session; x != nil && x.Err() == nil {
		c.violationLocked("%s: the loop has ended, its session has not", k.label)
	}
}

// look checks what sessions report about themselves.
func (c *checker) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lookLocked()
}

// leaders returns how many slots are led.
func (c *checker) leaders() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.oracles {
		if o.Leader() != "" {
			n++
		}
	}
	return n
}

// leader returns the label of the session or the elector that leads, "" for none.
func (c *checker) leader() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if label := c.oracle.Leader(); label != "" {
		return label
	}
	for _, e := range c.world.electors {
		if e.leading {
			return e.name
		}
	}
	return ""
}

// windingDown returns the label of a campaign whose body still runs though its context has ended, "" for none.
func (c *checker) windingDown() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.bodies {
		if x.Err() != nil {
			return x.campaign.label
		}
	}
	return ""
}

// wantFree checks that all campaigns, which ended while nothing was wrong, gave back what was theirs.
func (c *checker) wantFree() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, lease := range c.world.leases() {
		t := c.termOf(c.oracles[lease].Latest())
		if c.world.slots > 0 && t != nil && t.trust() <= 0 {
			continue // it was not released while there were faults, and nobody has needed that slot since
		}
		if t != nil && t.campaign != nil && (t.session == nil || c.world.hooks.Loss(t.session.Session) == nil) {
			c.violationLocked("%s left the lease held", t.campaign.label)
		}
	}
}
