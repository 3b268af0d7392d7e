package leasehold

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// An assigner watches over the group on behalf of one member: it writes the table if that names the member, and
// otherwise takes over from a member that does not. Its decisions are made on one goroutine, run.
//
// Whatever it writes is conditional on the table that it decided on, and rests on evidence that stays true, so that two
// that believe themselves to be named do no harm.
type assigner struct {
	membership *membership
	group      *group
	clock      clock
	news       wakeup // there may be something to decide

	mu       sync.Mutex             // protects following
	members  map[string]*memberView // by the name of the Lease
	listed   uint64                 // the version as of which all members are known; 0 while only some are followed
	surveyed uint64                 // the version of the newest list of all; events may have left a member out
	selected string                 // the Lease that is followed; "" for all
	unread   bool                   // that Lease was not read yet since it was selected
	reselect context.CancelFunc     // follows another selection
	dirty    bool                   // something changed that matters for the table
	ghosts   time.Time              // until when holders may live whose Leases were seen to be gone

	// Owned by run:
	wrote      uint64 // the version of the table that we wrote
	wroteText  string // what we wrote last, if no answer came
	wroteAt    time.Time
	begun      uint64                    // the epoch that we began without a trace of an earlier table
	beginAt    time.Time                 // when to begin an epoch, because there is no table; zero while there is
	epoch      uint64                    // of the table that was last looked at
	closed     time.Time                 // since when that epoch, and all members, are known
	counted    bool                      // so were members without the group's label, when it could have given keys
	hold       time.Time                 // until when a group that has just begun gives nothing
	surveying  uint64                    // the version of the table that the members were listed for last
	surveyAt   time.Time                 // when that list was asked for
	missing    map[shards.Term]time.Time // since when a term of the table is known to have no Lease
	unsure     []shards.Term             // whose Leases seem to be missing
	first      map[shards.Term]time.Time // when a term was first seen to report the epoch; zero if it had keys then
	rests      map[string]keyRest
	planned    *shards.Plan // the last that changed nothing
	rollout    shards.Rollout
	observed   uint64               // the version of the table that the rollout was told of last
	behind     time.Time            // since when the assigner goes by another table than ours; zero while it does not
	unheard    time.Time            // since when the watch lacks our own renewals; zero while it does not
	afresh     time.Time            // when everything was read afresh because of either
	unanswered time.Time            // since when the table does not answer what the member asked of it
	neglect    neglect              // what the assigner leaves undone, as the next in line sees it
	impatient  bool                 // the assigner renews its Lease, and is to be replaced
	unused     map[string]time.Time // since when a Lease of the group is of no use
	setbacks   map[string]setback   // by the name of a Lease, or the digest of keys
}

// A keyRest is how long a key is not given out after it was given back.
type keyRest struct {
	until    time.Time
	failures int
}

// A memberView is what is known of a Lease of the group.
type memberView struct {
	seen    observation
	text    string
	report  shards.Report // the zero Report if there is none that can be read
	garbled bool          // there is one that cannot be read
	live    time.Time     // since when its present term is known
}

func newAssigner(m *membership) *assigner {
	c := m.group.campaign
	return &assigner{
		membership: m,
		group:      m.group,
		clock:      c.clock,
		news:       newWakeup(),
		members:    map[string]*memberView{},
		missing:    map[shards.Term]time.Time{},
		first:      map[shards.Term]time.Time{},
		rollout:    shards.Rollout{Limit: 2 * c.options.duration},
		rests:      map[string]keyRest{},
		unused:     map[string]time.Time{},
		setbacks:   map[string]setback{},
	}
}

// look wakes run to decide again.
func (a *assigner) look() {
	a.mu.Lock()
	a.dirty = true
	a.mu.Unlock()
	a.news.signal()
}

// tableChanged wakes run to decide again, and follows the members that the new table makes it necessary to follow.
func (a *assigner) tableChanged() {
	a.look()
	selected := a.selection()
	a.mu.Lock()
	defer a.mu.Unlock()
	if selected != a.selected && a.reselect != nil {
		a.reselect()
	}
}

// selection returns the name of the Lease to follow, "" for all: the assigner and the next in line follow all members,
// and the others follow the assigner.
func (a *assigner) selection() string {
	a.group.mu.Lock()
	defer a.group.mu.Unlock()
	return a.selectionLocked()
}

// selectionLocked is selection. The caller holds the group's mu.
func (a *assigner) selectionLocked() string {
	t := a.membership.table.table
	if t == nil || t.Buckets != a.group.buckets || !t.Lists(t.Assigner) || a.rankLocked() <= 1 {
		return ""
	}
	return t.Assigner.Lease
}

// rankLocked returns how many members come before this one: 0 for the assigner, 1 for the next in line. The caller
// holds the group's mu.
func (a *assigner) rankLocked() int {
	t, me := a.membership.table.table, a.membership.term()
	if t.Assigner == me {
		return 0
	}
	rank := 1
	for _, r := range t.Rows {
		switch {
		case r.Term == me:
			return rank
		case r.Term != t.Assigner && r.Weight > 0:
			rank++
		}
	}
	return rank
}

// followMembers follows the members, all or the assigner alone, until ctx ends.
func (a *assigner) followMembers(ctx context.Context) {
	for ctx.Err() == nil {
		selected := a.selection()
		following, cancel := context.WithCancel(ctx)
		a.selectLease(selected, cancel)
		if a.selection() == selected {
			a.group.client.follow(following, "list", selected, a.group.delays.members, a)
		}
		cancel()
	}
}

// selectLease records which Lease is followed from now on, "" for all, and what ends that. What was known of Leases
// that were not followed meanwhile is old: by that an assigner that has just begun would be taken for a silent one.
func (a *assigner) selectLease(selected string, reselect context.CancelFunc) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if selected != "" && selected != a.selected {
		clear(a.members)
		a.unread = true
	}
	a.selected, a.reselect, a.listed = selected, reselect, 0
}

func (a *assigner) replace(leases []*coordinationv1.Lease, version uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.selected == "" {
		a.keepLocked(leases, version)
	}
	for _, l := range leases {
		a.setLocked(l)
	}
	a.dirty, a.unread = true, false
	a.news.signal()
}

func (a *assigner) update(lease *coordinationv1.Lease, deleted bool) {
	r, err := readRecord(lease)
	if err != nil {
		return // that no API server sends
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.members[lease.Name]
	switch {
	case known == nil && r.version <= a.listed:
		return // of a Lease that a later list did not have
	case !deleted:
		a.setLocked(lease)
	case known != nil && known.seen.version <= r.version:
		a.forgetLocked(lease.Name)
	}
	if a.selected == "" && a.listed > 0 {
		a.listed = max(a.listed, r.version) // events come in order
	}
	a.news.signal()
}

// keepLocked forgets the Leases that are not among those that were listed as of version. The caller holds mu.
func (a *assigner) keepLocked(listed []*coordinationv1.Lease, version uint64) {
	present := map[string]bool{}
	for _, l := range listed {
		present[l.Name] = true
	}
	for name, v := range a.members {
		if !present[name] && v.seen.version <= version {
			a.forgetLocked(name)
		}
	}
	a.listed, a.surveyed = max(a.listed, version), max(a.surveyed, version)
}

// forgetLocked forgets a Lease that is gone. The caller holds mu.
func (a *assigner) forgetLocked(name string) {
	a.goneLocked(a.members[name])
	delete(a.members, name)
	a.dirty = true
}

// goneLocked records that the Lease of v does not exist any more. Its holder may not have heard. The caller holds mu.
func (a *assigner) goneLocked(v *memberView) {
	if v.seen.held() {
		duration := max(v.seen.wait, a.group.campaign.options.duration)
		a.ghosts = later(a.ghosts, a.clock.now().mono.Add(duration))
	}
}

// setLocked records what a Lease of the group is. The caller holds mu.
func (a *assigner) setLocked(lease *coordinationv1.Lease) {
	if !a.group.isMember(lease.Name) && !a.group.isPage(lease.Name) {
		return
	}
	r, err := readRecord(lease)
	if err != nil {
		return // that no API server sends
	}
	v := a.members[lease.Name]
	if v == nil {
		v = &memberView{}
		a.members[lease.Name] = v
	}
	if v.seen.known && r.version <= v.seen.version {
		return
	}
	if v.seen.known && v.seen.uid != r.uid {
		a.goneLocked(v)
	}
	now := a.clock.now().mono
	if text := lease.Annotations[memberAnnotation]; text != v.text || v.seen.term() != r.term() {
		a.dirty = true
		v.text = text
		var err error
		v.report, err = shards.DecodeReport(text)
		v.garbled = text != "" && err != nil
		if v.seen.term() != r.term() {
			v.live = now
		}
	}
	v.seen = observe(&v.seen, &r, now, a.group.campaign.options.duration, func(term) bool { return false })
}

// isMember and isPage report what a Lease of the group is by its name.
func (g *group) isMember(name string) bool { return strings.HasPrefix(name, g.client.group+"-m-") }
func (g *group) isPage(name string) bool   { return strings.HasPrefix(name, g.client.group+"-k-") }

// termOf returns the term that a member's Lease shows, and whether it shows one.
func termOf(name string, r record) (shards.Term, bool) {
	return shards.Term{Lease: name, UID: string(r.uid), Acquired: r.acquired.UnixMicro()}, r.held()
}

// run decides, until ctx ends.
func (a *assigner) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	delays := a.group.delays.assign
	delays.reset()
	for ctx.Err() == nil {
		wait, err := a.step(ctx)
		if err == nil && len(a.unsure) > 0 {
			wait, err = 0, a.readUnsure(ctx)
		}
		if err != nil {
			var fault groupFault
			if errors.As(err, &fault) && a.group.once(fault.Error()) {
				a.group.campaign.log.error("this member cannot assign the group's keys",
					"group", a.group.client.group, "error", err)
			}
			sleep(ctx, a.clock, delays.next(err, a.group.campaign.options.renewInterval))
			continue
		}
		delays.reset()
		timer.Reset(a.clock.wait(max(wait, 0)))
		for waiting := !a.isDirty(); waiting; {
			select {
			case <-timer.C:
				waiting = false
			case <-a.news:
				waiting = !a.isDirty() // most news is that members are alive
			case <-ctx.Done():
				waiting = false
			}
		}
	}
}

func (a *assigner) isDirty() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.dirty
}

// A view is what a step decides on. Nothing in it changes during the step.
type view struct {
	now     time.Time
	table   tableView
	me      shards.Row
	report  shards.Report // our own, now
	rank    int
	waiting bool // the table does not answer what we asked of it
	dirty   bool // something has changed that matters for the table
	members map[string]memberView

	listed, surveyed uint64
	ghosts           time.Time
	unread           bool // the Lease of the assigner, which alone is followed, was not read yet
}

func (a *assigner) view() view {
	g, m := a.group, a.membership
	v := view{now: a.clock.now().mono, me: m.row(), members: map[string]memberView{}}
	g.mu.Lock()
	v.table, v.report = m.table, m.reportLocked()
	if v.table.table != nil {
		v.rank = a.rankLocked()
		v.waiting = m.owner.Unanswered(v.table.table)
	}
	selection := a.selectionLocked()
	g.mu.Unlock()
	v.me.Weight = v.report.Weight
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, member := range a.members {
		v.members[name] = *member
	}
	v.listed, v.surveyed, v.ghosts, v.dirty = a.listed, a.surveyed, a.ghosts, a.dirty
	a.dirty = false
	v.unread = selection != "" && (a.unread || a.selected != selection)
	return v
}

// step makes the next decision. It returns after which time to look again if there is no news.
func (a *assigner) step(ctx context.Context) (time.Duration, error) {
	g := a.group
	v := a.view()
	t := v.table
	switch {
	case !t.known:
		return maxDuration, nil
	case t.foreign && t.exists:
		if a.sawTable() && g.once("foreign "+string(t.record.uid)) {
			g.campaign.log.error(
				"the group's Lease is another program's now; no keys are given out until it is deleted",
				"group", g.client.group)
		}
		return maxDuration, nil
	case errors.As(t.err, new(shards.FormatError)):
		if g.once(t.err.Error()) {
			g.campaign.log.error("this member does not join: another version of the program shares out the keys",
				"group", g.client.group, "error", t.err)
		}
		return maxDuration, nil
	case !t.exists || t.table == nil:
		if v.listed == 0 {
			return maxDuration, nil // its members are about to be listed
		}
		return a.beginAnew(ctx, v)
	case t.table.Buckets != g.buckets:
		return a.awaitOtherKeys(ctx, v)
	}
	a.beginAt = time.Time{}
	if a.observed != t.record.version {
		a.observed = t.record.version
		a.rollout.Observe(t.table, v.now)
	}
	if a.begun != t.table.Epoch {
		a.begun = 0 // should it be written late yet, there is a trace
	}
	a.impatient = false
	if t.table.Assigner != v.me.Term {
		if v.unread {
			return maxDuration, nil
		}
		wait, err := a.standBy(ctx, v)
		if wait > 0 || err != nil {
			return min(wait, a.catchUp(v), a.listen(v)), err
		}
		if v.listed == 0 {
			return 0, a.listMembers(ctx)
		}
	}
	wait, err := a.assign(ctx, v)
	return min(wait, a.catchUp(v), a.listen(v)), err
}

// listen reads everything afresh if the watch of the members does not bring our own renewals: it is silent. It returns
// when to look again.
func (a *assigner) listen(v view) time.Duration {
	o := a.group.campaign.options
	switch {
	case v.listed == 0:
		return maxDuration // it follows the assigner alone
	case a.group.campaign.store.latest().version <= v.members[v.me.Lease].seen.version:
		a.unheard = time.Time{}
		return o.renewInterval
	case a.unheard.IsZero():
		a.unheard = v.now
	}
	return a.readAfresh(v, a.unheard.Add(o.renewInterval/3))
}

// readAfresh reads everything afresh from at on, at most once in each renew interval. It returns when to look again.
func (a *assigner) readAfresh(v view, at time.Time) time.Duration {
	interval := a.group.campaign.options.renewInterval
	if wait := later(at, a.afresh.Add(interval)).Sub(v.now); wait > 0 {
		return wait
	}
	a.afresh = v.now
	a.membership.readAfresh()
	return interval
}

// catchUp reads the table afresh if others have seen a newer one for longer than a watch takes. It returns when
// to look again.
func (a *assigner) catchUp(v view) time.Duration {
	o := a.group.campaign.options
	newest := uint64(0)
	for name, m := range v.members {
		// A report is older than the Lease that has it, or was made up.
		if term, held := termOf(name, m.seen.record); held && m.report.Acquired == term.Acquired &&
			m.report.Version < m.seen.version {
			newest = max(newest, m.report.Version)
		}
	}
	if newest <= v.table.record.version {
		a.behind = time.Time{}
		return maxDuration
	}
	if a.behind.IsZero() {
		a.behind = v.now
	}
	if v.now.Sub(a.behind) > o.renewDeadline {
		a.membership.session.lose(lostBecause(expired, "the group's table was not read for %v", o.renewDeadline))
		return maxDuration
	}
	return a.readAfresh(v, a.behind.Add(min(o.renewInterval/3, time.Second)))
}

// ended reports whether a term is certainly over; since says from when on that is known if nothing happens, zero if it
// is not.
func (a *assigner) ended(v view, r shards.Row) (ended bool, at time.Time) {
	if r.Term == v.me.Term {
		return false, time.Time{}
	}
	if m, ok := v.members[r.Lease]; ok && string(m.seen.uid) == r.UID {
		delete(a.missing, r.Term)
		if term, held := termOf(r.Lease, m.seen.record); held && term == r.Term {
			return false, time.Time{}
		}
		return m.seen.version > r.Seen, time.Time{}
	}
	if v.listed < r.Seen || v.listed == 0 {
		return false, time.Time{}
	}
	// Its Lease was deleted. It may not have heard, and trust it for as long as it may trust any.
	since, ok := a.missing[r.Term]
	if !ok {
		a.unsure = append(a.unsure, r.Term)
		return false, time.Time{}
	}
	at = since.Add(max(a.group.campaign.options.duration, time.Duration(r.Seconds)*time.Second))
	return !v.now.Before(at), at
}

// readUnsure reads the Leases that seem to be missing: one is not because its label was removed, or because a watch
// left it out.
func (a *assigner) readUnsure(ctx context.Context) error {
	unsure := a.unsure
	a.unsure = nil
	for _, term := range unsure {
		lease, err := a.group.client.get(ctx, "get member", term.Lease)
		if err != nil {
			return err
		}
		a.mu.Lock()
		if lease != nil && string(lease.UID) == term.UID && a.group.isMember(term.Lease) {
			a.setLocked(lease)
		} else {
			a.missing[term] = a.clock.now().mono
		}
		a.dirty = true
		a.mu.Unlock()
	}
	return nil
}

// beginAnew writes a table that gives nothing, because there is none, or none that can be read.
func (a *assigner) beginAnew(ctx context.Context, v view) (time.Duration, error) {
	g := a.group
	if v.report.Weight == 0 {
		return maxDuration, nil
	}
	if g.buckets == 0 && v.report.Own == "" {
		return maxDuration, nil // until its keys are published
	}
	if a.beginAt.IsZero() { // not all at once
		a.beginAt = v.now.Add(g.campaign.options.between(0, gathering(g.campaign.options)))
	}
	if wait := a.beginAt.Sub(v.now); wait > 0 {
		return wait, nil
	}
	return gathering(g.campaign.options), a.writeNew(ctx, v, nil,
		"the group's table cannot be read; beginning a new one", "error", v.table.err)
}

// writeNew writes the first table of a new epoch, and says why where there was a table.
func (a *assigner) writeNew(ctx context.Context, v view, old *shards.Table, why string, attributes ...any) error {
	g := a.group
	next := shards.NewTable(old, rand.Uint64()|1, rand.Uint64(), v.me, g.buckets)
	a.begun = 0
	if !v.table.exists && !a.sawEpoch(v) {
		a.begun = next.Epoch
	}
	a.hold = v.now.Add(min(g.campaign.options.renewInterval, time.Second))
	written, err := a.write(ctx, v, next, nil)
	if written && v.table.exists {
		g.campaign.log.warn(why, append([]any{"group", g.client.group}, attributes...)...)
	}
	return err
}

// sawEpoch reports whether there is a trace of an earlier table.
func (a *assigner) sawEpoch(v view) bool {
	saw := a.sawTable()
	for _, m := range v.members {
		saw = saw || m.report.Epoch != 0
	}
	return saw
}

// sawTable reports whether this process has seen a table of the group.
func (a *assigner) sawTable() bool {
	a.group.mu.Lock()
	defer a.group.mu.Unlock()
	return a.group.sawTable
}

// awaitOtherKeys waits until the members that share out other keys, in another number of buckets, are gone.
func (a *assigner) awaitOtherKeys(ctx context.Context, v view) (time.Duration, error) {
	g, t := a.group, v.table.table
	what := fmt.Sprintf("%d buckets", t.Buckets)
	if t.Buckets == 0 {
		what = "keys with names"
	}
	if g.once(what) {
		g.campaign.log.error(
			"this member does not join: the group shares out "+what+"; waiting until its members are gone",
			"group", g.client.group, "buckets", g.buckets)
	}
	if v.surveyed < v.table.record.version {
		return a.survey(ctx, v)
	}
	wait := maxDuration
	for _, r := range t.Rows {
		m, ok := v.members[r.Lease]
		if term, held := termOf(r.Lease, m.seen.record); ok && held && term == r.Term {
			left := a.untilFence(v, r.Lease, m)
			if left <= 0 {
				return shortestDelay, a.fence(ctx, v, r.Lease, m)
			}
			wait = min(wait, left)
			continue
		}
		if ended, at := a.ended(v, r); !ended {
			wait = min(wait, max(at.Sub(v.now), shortestDelay))
		}
	}
	if wait < maxDuration {
		return wait, nil
	}
	return gathering(g.campaign.options), a.writeNew(ctx, v, t,
		"the members that shared out other keys are gone; beginning a new table")
}

// standBy watches the assigner. It returns 0 when this member is to take over.
func (a *assigner) standBy(ctx context.Context, v view) (time.Duration, error) {
	o := a.group.campaign.options
	t := v.table.table
	if v.report.Weight == 0 || v.report.Epoch == 0 && v.report.Bad != t.Epoch {
		return maxDuration, nil
	}
	// The next in line comes first, the others after it.
	turn := time.Duration(0)
	if v.rank > 1 {
		turn = min(o.renewInterval, time.Second)
	}
	m, ok := v.members[t.Assigner.Lease]
	if term, held := termOf(t.Assigner.Lease, m.seen.record); ok && held && term == t.Assigner {
		if !v.waiting {
			a.unanswered = time.Time{}
		} else if a.unanswered.IsZero() {
			a.unanswered = v.now
		}
		wait := a.untilFence(v, t.Assigner.Lease, m) + turn
		if wait <= 0 {
			return shortestDelay, a.fence(ctx, v, t.Assigner.Lease, m)
		}
		patience := min(a.patience(v, turn), a.neglected(ctx, v))
		a.impatient = patience <= 0
		return min(wait, patience), nil
	}
	row := shards.Row{Term: t.Assigner}
	if i := slices.IndexFunc(t.Rows, func(r shards.Row) bool { return r.Term == t.Assigner }); i >= 0 {
		row = t.Rows[i]
	}
	ended, at := a.ended(v, row)
	switch {
	case !ended && !at.IsZero():
		return max(at.Sub(v.now), shortestDelay), nil
	case !ended && v.listed == 0:
		return 0, nil // which lists the members
	case !ended:
		return maxDuration, nil // until more is known of it
	case t.Assigner.Lease == v.me.Lease || turn == 0:
		return 0, nil
	}
	since := v.now
	if ok {
		since = m.live
	} else if missing, ok := a.missing[row.Term]; ok {
		since = missing.Add(o.duration)
	}
	return max(since.Add(turn).Sub(v.now), 0), nil
}

// patience returns how long to wait yet for an assigner that renews its Lease to answer what this member asked of it.
func (a *assigner) patience(v view, turn time.Duration) time.Duration {
	o, t := a.group.campaign.options, v.table.table
	switch {
	case !v.waiting:
		a.unanswered = time.Time{}
		return maxDuration
	case a.unanswered.IsZero():
		a.unanswered = v.now
	}
	switch {
	case v.report.Epoch != t.Epoch && v.report.Bad != t.Epoch:
		return maxDuration // the work of another epoch is to return first: nobody could answer
	case !t.Open && v.rank > 1:
		return maxDuration // it is not known here whether the table may open
	}
	limit := a.unanswered.Add(o.duration + turn)
	if !t.Open {
		limit = limit.Add(o.duration) // it waits for as long before the table opens
	}
	// Perhaps it does answer, and only we do not hear it.
	if again := limit.Add(-o.duration / 2); a.afresh.Before(again) {
		return min(limit.Sub(v.now), a.readAfresh(v, again))
	}
	return limit.Sub(v.now)
}

// A neglect is what an assigner that renews its Lease leaves undone.
type neglect struct {
	look    time.Time // when to look at what it did; zero if nothing has happened since it had done everything
	version uint64    // of the table that something was missing of
	since   time.Time // since when
}

// neglected returns how long to wait yet for an assigner that renews its Lease to do what the next in line, which
// watches all members too, would do in its place. It is to have the time for that before it is looked at, so that it is
// seldom planned what it does.
func (a *assigner) neglected(ctx context.Context, v view) time.Duration {
	o, t, n := a.group.campaign.options, v.table.table, &a.neglect
	if v.rank != 1 || v.listed == 0 || !t.Open || v.report.Epoch != t.Epoch {
		*n = neglect{}
		return maxDuration
	}
	silent := ""
	for name, m := range v.members {
		if name != v.me.Lease && a.group.isMember(name) && m.seen.held() && a.untilFence(v, name, m) <= 0 {
			silent = name
		}
	}
	if n.look.IsZero() {
		if !v.dirty && silent == "" {
			return maxDuration
		}
		n.look = v.now.Add(o.renewInterval)
	}
	if wait := n.look.Sub(v.now); wait > 0 {
		return wait
	}
	patience := o.duration - o.renewInterval
	if silent == "" {
		undone, ungiven := a.undone(ctx, v)
		switch {
		case undone:
		case ungiven:
			patience = o.duration + longestRest // it may know that the keys rest
		default:
			*n = neglect{}
			return maxDuration
		}
	}
	if n.version != v.table.record.version {
		n.version, n.since = v.table.record.version, v.now
	}
	n.look = n.since.Add(patience)
	if wait := n.look.Sub(v.now); wait > 0 || silent == "" {
		return wait
	}
	// Whether its silence is the assigner's fault shows when its Lease can be fenced: then its keys are free, and ours
	// to give.
	a.fence(ctx, v, silent, v.members[silent])
	return shortestDelay
}

// undone reports whether we would change the table in the assigner's place, but for moving keys that have an owner and
// giving those that have none, and whether there are any to give.
func (a *assigner) undone(ctx context.Context, v view) (undone, ungiven bool) {
	t := v.table.table
	i := slices.IndexFunc(t.Rows, func(r shards.Row) bool { return r.Term == t.Assigner })
	if i < 0 {
		return false, false
	}
	p, e := a.plan(ctx, v)
	if e.unread {
		return false, false
	}
	p.Assigner, p.Moves, p.Holds = t.Rows[i], 0, true
	if p.Next(1).Changed {
		return true, false
	}
	p.Holds = false
	return false, p.Next(1).Changed
}

// A setback is that a request about a Lease failed. It is left alone for a while, so that it does not keep the others
// from what is done for them.
type setback struct {
	until    time.Time
	failures int // in a row, of those that no outage explains
}

// putOff leaves alone what a request failed for with err, longer each time if it was refused.
func (a *assigner) putOff(what string, err error) {
	s := a.setbacks[what]
	pause := max(refusedDelay, retryAfter(err))
	if refused(err) || conflicts(err) {
		pause <<= min(s.failures, 10)
		s.failures++
	}
	s.until = a.clock.now().mono.Add(min(pause, a.group.campaign.options.duration))
	a.setbacks[what] = s
}

// untilFence returns when the term of m, which the Lease with a name shows, may be fenced: once it was not seen to be
// renewed for its duration.
func (a *assigner) untilFence(v view, name string, m memberView) time.Duration {
	return later(m.seen.expiresAt(), a.setbacks[name].until).Sub(v.now)
}

// fence ends the term of a member that was not seen to renew its Lease for its duration: no renewal that is under way
// takes effect any more.
func (a *assigner) fence(ctx context.Context, v view, name string, m memberView) error {
	lease, err := a.group.client.patch(ctx, "fence", name, m.seen.record, nil, freeSpec{})
	if err != nil {
		a.putOff(name, err)
		if conflicts(err) { // something happened that was not seen
			a.readAfresh(v, v.now)
		}
		return nil
	}
	a.group.campaign.log.info("member of the group did not renew its lease; its keys are given to others",
		"group", a.group.client.group, "member", m.seen.identity)
	delete(a.setbacks, name)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.setLocked(lease)
	return nil
}

// survey lists the members anew, because what is known of them may lack one that a watch left out. A server whose
// answers lag behind the table is asked again after a while.
func (a *assigner) survey(ctx context.Context, v view) (time.Duration, error) {
	interval := a.group.campaign.options.renewInterval
	if again := a.surveyAt.Add(interval).Sub(v.now); again > 0 && a.surveying == v.table.record.version {
		return again, nil
	}
	if err := a.listMembers(ctx); err != nil {
		return 0, err
	}
	a.surveying, a.surveyAt = v.table.record.version, v.now
	return 0, nil
}

// listMembers reads all Leases that have the group's label.
func (a *assigner) listMembers(ctx context.Context) error {
	return a.recordList(a.group.client.list(ctx))
}

// listAll reads all Leases of the group, also members' that somebody has taken the label from: those are not watched.
func (a *assigner) listAll(ctx context.Context) error {
	return a.recordList(a.group.client.listUnlabelled(ctx))
}

// recordList records that the Leases of the group are those that were listed as of version.
func (a *assigner) recordList(leases []*coordinationv1.Lease, version uint64, err error) error {
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keepLocked(leases, version)
	for _, l := range leases {
		a.setLocked(l)
	}
	a.dirty = true
	return nil
}

// assign writes the next table, if there is anything to change.
func (a *assigner) assign(ctx context.Context, v view) (time.Duration, error) {
	g, c := a.group, a.group.campaign
	t := v.table.table
	if v.table.text == a.wroteText {
		a.wrote, a.wroteText = v.table.record.version, ""
	}
	if (a.wrote != v.table.record.version || !t.Open) && v.surveyed < v.table.record.version {
		// Somebody else wrote it, or it is new: what members reported has to be compared with it.
		return a.survey(ctx, v)
	}
	if t.Epoch != a.epoch {
		a.epoch, a.closed = t.Epoch, v.now
	}
	wait := maxDuration
	ready := true
	for name, m := range v.members {
		term, held := termOf(name, m.seen.record)
		if !g.isMember(name) || !held {
			continue
		}
		if name == v.me.Lease {
			term = v.me.Term
		}
		report := a.reportOf(v, term, m)
		if t.Contradicts(report) {
			return gathering(c.options), a.writeNew(ctx, v, t,
				"the group's table is not the one that its members went by: it was restored or edited; beginning "+
					"a new one",
				"member", m.seen.identity)
		}
		if report.Epoch != 0 && report.Epoch != t.Epoch {
			a.begun = 0 // a trace of an earlier table
		}
		// In epoch 0 a term has read no table, and owns nothing.
		ready = ready && (report.Epoch == t.Epoch || report.Epoch == 0 && !m.garbled)
		if name == v.me.Lease {
			continue
		}
		left := a.untilFence(v, name, m)
		if left <= 0 {
			return shortestDelay, a.fence(ctx, v, name, m)
		}
		wait = min(wait, left)
	}
	if v.report.Epoch != t.Epoch {
		return maxDuration, nil // the table is new to ourselves
	}
	if !t.Open {
		if !ready {
			a.counted = false
			return wait, nil
		}
		// Members may live whose Leases were deleted: before they could be listed, or since.
		ghosts := v.ghosts
		if a.begun != t.Epoch {
			ghosts = later(ghosts, a.closed.Add(c.options.duration))
		}
		if left := ghosts.Sub(v.now); left > 0 {
			a.counted = false
			return min(wait, left), nil
		}
		if !a.counted && a.begun != t.Epoch {
			err := a.listAll(ctx)
			a.counted = err == nil
			return 0, err
		}
	}
	p, e := a.plan(ctx, v)
	if !p.Same(a.planned) {
		if again := a.wroteAt.Add(gathering(c.options)).Sub(v.now); again > 0 && !a.wroteAt.IsZero() {
			return again, nil
		}
		if next := p.Next(rand.Uint64()); next.Changed {
			return 0, a.writeNext(ctx, v, next)
		}
		a.planned = p
	}
	again := earlier(e.until, a.nextRest(v.now))
	return min(wait, again.Sub(v.now)), a.tidy(ctx, v)
}

// An evidence is how long what a plan is based on stays as it is, and whether it is all that there is.
type evidence struct {
	until  time.Time // then something changes by time alone
	unread bool      // the keys of a member could not be read
}

// plan returns the plan of the next table, by what is known now.
func (a *assigner) plan(ctx context.Context, v view) (*shards.Plan, evidence) {
	t := v.table.table
	members, e := a.sharers(ctx, v)
	p := &shards.Plan{
		Table: t, Assigner: v.me, Members: members, Moves: a.group.campaign.options.maxMoves(), Open: true,
		Rests: a.resting(v.now), Holds: v.now.Before(a.hold),
	}
	if a.group.buckets == 0 {
		p.Names = v.table.names
	}
	for _, r := range t.Rows {
		over, at := a.ended(v, r)
		p.Ended, p.Resumes = append(p.Ended, over), append(p.Resumes, over && a.resumes(v, r.Term))
		if !over && !at.IsZero() {
			e.until = earlier(e.until, at)
		}
	}
	return p, e
}

// writeNext writes the table that was planned.
func (a *assigner) writeNext(ctx context.Context, v view, next shards.Next) error {
	g := a.group
	var names []string // that are to be published
	if g.buckets == 0 && next.Table.Keys != v.table.table.Keys {
		names = next.Names
	}
	if written, err := a.write(ctx, v, next.Table, names); !written {
		return err
	}
	if a.impatient {
		g.campaign.log.warn("the member that assigns the group's keys does not answer; taking over",
			"group", g.client.group, "assigner", v.table.table.Assigner.Lease)
		a.impatient = false
	}
	a.rest(next.Freed, v.now)
	return nil
}

// reportOf returns what the member of a term, which m shows, reports in it.
func (a *assigner) reportOf(v view, term shards.Term, m memberView) shards.Report {
	switch {
	case term == v.me.Term:
		return v.report
	case m.report.Acquired == term.Acquired:
		return m.report
	}
	return shards.Report{}
}

// sharers returns the members that go by the table and whose keys are known, and when one of them will have settled.
// Keys are neither given to others nor taken from them.
func (a *assigner) sharers(ctx context.Context, v view) (members []shards.Member, e evidence) {
	g, t := a.group, v.table.table
	e.until = v.now.Add(maxDuration)
	all := map[string]memberView{v.me.Lease: {}}
	for name, m := range v.members {
		if name != v.me.Lease && g.isMember(name) && m.seen.held() && m.seen.expiresAt().After(v.now) {
			all[name] = m
		}
	}
	seen := map[shards.Term]bool{}
	used := map[string]bool{t.Keys: true}
	// What we own is to be known by what others can read: one of them may begin a new epoch.
	if stored := v.members[v.me.Lease].report; stored.Acquired != v.me.Acquired || stored.Epoch != t.Epoch {
		delete(all, v.me.Lease)
	}
	for name, m := range all {
		term, report, row := v.me.Term, v.report, v.me
		if name != v.me.Lease {
			term, _ = termOf(name, m.seen.record)
			report = a.reportOf(v, term, m)
			row = shards.Row{
				Term: term, Seen: m.seen.version, Identity: m.seen.identity,
				Weight: report.Weight, Seconds: int(m.seen.wait / time.Second),
			}
		}
		if report.Epoch != t.Epoch || report.Buckets != g.buckets {
			continue
		}
		seen[term] = true
		var knows []string
		if g.buckets == 0 && report.Own != "" {
			used[report.Own] = true
			var err error
			knows, err = a.keysOf(ctx, v, report.Own)
			e.unread = e.unread || err != nil
			if err == errKeysMissing {
				knows = nil // it learns that nobody can read them by having none
			} else if err != nil {
				e.until = earlier(e.until, a.setbacks[report.Own].until)
				continue
			}
		}
		first, ok := a.first[term]
		if !ok {
			if !t.GivesAny(term) {
				first = v.now
			}
			a.first[term] = first
		}
		at := first.Add(a.settleTime(first))
		settling := v.now.Before(at)
		if settling {
			e.until = earlier(e.until, at)
		}
		members = append(members, shards.Member{Row: row, Report: report, Knows: knows, Settling: settling})
	}
	for term := range a.first {
		if !seen[term] {
			delete(a.first, term)
		}
	}
	if v.now.Before(a.hold) {
		e.until = earlier(e.until, a.hold)
	}
	slices.SortFunc(members, func(x, y shards.Member) int { return strings.Compare(x.Lease, y.Lease) })
	g.forgetSets(used)
	return members, e
}

// errPutOff says that keys could not be read just now.
var errPutOff = errors.New("the keys could not be read, and are tried again")

// keysOf returns the keys with a digest, that a member knows.
func (a *assigner) keysOf(ctx context.Context, v view, digest string) ([]string, error) {
	if v.now.Before(a.setbacks[digest].until) {
		return nil, errPutOff
	}
	keys, err := a.group.names(ctx, digest)
	if err != nil && err != errKeysMissing {
		a.putOff(digest, err)
		return nil, err
	}
	delete(a.setbacks, digest)
	return keys, err
}

// settleTime returns for how long no keys move to a member that joined at a time.
func (a *assigner) settleTime(joined time.Time) time.Duration {
	o := a.group.campaign.options
	if o.group.settle >= 0 {
		return o.group.settle
	}
	return a.rollout.Settle(o.renewInterval, joined)
}

// resumes reports whether the member of a term that has ended is about to go on in a new one.
func (a *assigner) resumes(v view, term shards.Term) bool {
	m, ok := v.members[term.Lease]
	if !ok || !m.seen.held() {
		return false
	}
	now, _ := termOf(term.Lease, m.seen.record)
	reported := m.report.Acquired == now.Acquired && m.report.Epoch != 0
	return now != term && !reported && v.now.Sub(m.live) < a.group.campaign.options.renewInterval
}

// rest keeps keys from being given out for a while, longer each time that their work fails.
func (a *assigner) rest(freed map[string]bool, now time.Time) {
	o := a.group.campaign.options
	for key, failed := range freed {
		r := a.rests[key]
		wait := o.between(o.renewInterval/4, o.renewInterval*3/4)
		r.failures++
		if !failed {
			r.failures = 0
		}
		wait = min(wait<<min(r.failures, 20), longestRest)
		r.until = now.Add(wait)
		a.rests[key] = r
	}
	for key, r := range a.rests {
		if now.Sub(r.until) > 2*longestRest {
			delete(a.rests, key)
		}
	}
}

// longestRest is for how long a key whose work fails again and again is not given out.
const longestRest = 5 * time.Minute

// resting returns the keys that rest.
func (a *assigner) resting(now time.Time) map[string]bool {
	keys := map[string]bool{}
	for key, r := range a.rests {
		if now.Before(r.until) {
			keys[key] = true
		}
	}
	return keys
}

// nextRest returns when the next key has rested.
func (a *assigner) nextRest(now time.Time) time.Time {
	next := now.Add(maxDuration)
	for _, r := range a.rests {
		if r.until.After(now) {
			next = earlier(next, r.until)
		}
	}
	return next
}

// write writes the table if it still is as v has it, after its keys if their names are not published yet, and reports
// whether that is certain.
func (a *assigner) write(ctx context.Context, v view, next *shards.Table, names []string) (bool, error) {
	g := a.group
	text := next.Encode()
	if len(text) > maxAnnotation {
		return false, groupFault(fmt.Sprintf(
			"the table has %d bytes, want at most %d: too many keys in too many runs", len(text), maxAnnotation))
	}
	if names != nil {
		if err := g.publish(ctx, next.Keys, names); err != nil {
			return false, err
		}
		g.mu.Lock()
		g.addSetLocked(next.Keys, names)
		g.mu.Unlock()
	}
	a.wroteText, a.wroteAt = text, v.now
	var lease *coordinationv1.Lease
	var err error
	if !v.table.exists {
		now := metav1.NewMicroTime(time.Now())
		lease, err = g.client.create(ctx, "create table", &coordinationv1.Lease{
			ObjectMeta: objectMeta(g.client.group, tableAnnotation, text),
			// No candidate takes it for a lease that is free.
			Spec: coordinationv1.LeaseSpec{
				HolderIdentity:       new("leasehold group " + g.client.group),
				LeaseDurationSeconds: new(int32(maxTransitions)),
				AcquireTime:          &now, RenewTime: &now, LeaseTransitions: new(int32(0)),
			},
		})
	} else {
		annotations := map[string]*string{tableAnnotation: &text}
		lease, err = g.client.patch(ctx, "write table", g.client.group, v.table.record, annotations, nil)
	}
	if err != nil {
		// What the table is now decides.
		if lease, again := g.client.get(ctx, "get table", g.client.group); again == nil {
			a.membership.setTable(ctx, lease)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if conflicts(err) && a.membership.table.record.version != v.table.record.version {
			return false, nil
		}
		return false, err
	}
	a.wroteText = ""
	if r, err := readRecord(lease); err == nil {
		a.wrote = r.version
	}
	return true, a.membership.setTable(ctx, lease)
}

// A groupFault is why keys cannot be assigned, which no further try mends.
type groupFault string

func (f groupFault) Error() string { return string(f) }

// maxAnnotation is how long the text of a table may be: all annotations of an object together have 256 KiB.
var maxAnnotation = 250_000

// tidy deletes one Lease of the group that has been of no use for a while.
func (a *assigner) tidy(ctx context.Context, v view) error {
	g, t := a.group, v.table.table
	used := map[string]bool{}
	for _, r := range t.Rows {
		used[r.Lease] = true
	}
	digests := map[string]bool{t.Keys: true, v.report.Own: true}
	for _, m := range v.members {
		digests[m.report.Own], digests[m.report.Keys] = true, true
	}
	for name, m := range v.members {
		rest, page := strings.CutPrefix(name, g.client.group+"-k-")
		digest, _, _ := strings.Cut(rest, "-")
		if used[name] || !page && m.seen.held() || page && digests[digest] {
			delete(a.unused, name)
			continue
		}
		since, ok := a.unused[name]
		if !ok {
			a.unused[name] = v.now
			continue
		}
		if v.now.Sub(since) < 2*g.campaign.options.duration {
			continue
		}
		delete(a.unused, name)
		if err := g.client.delete(ctx, "delete", name, m.seen.record); err != nil && !conflicts(err) {
			g.campaign.log.debug("a Lease of the group that is of no use was not deleted", "name", name, "error", err)
		}
	}
	return nil
}
