package leasehold

import (
	"context"
	"errors"
	"sync"
	"time"

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
	hold       time.Time                 // until when an epoch that this member began gives nothing, for others to join
	surveying  uint64                    // the version of the table that the members were listed for last
	surveyAt   time.Time                 // when that list was asked for
	missing    map[shards.Term]time.Time // since when a term of the table is known to have no Lease
	unsure     []shards.Term             // whose Leases seem to be missing
	first      map[shards.Term]time.Time // when a term was first seen to report the epoch; zero if it had keys then
	rests      map[string]keyRest
	planned    *shards.Plan // the last that changed nothing
	rollout    shards.Rollout
	observed   uint64               // the version of the table that the rollout was told of last
	awaited    uint64               // a newer version of the table, reported by others and not read yet; 0 if none
	awaitedAt  time.Time            // when that version was first reported
	unheard    time.Time            // since when the watch lacks our own renewals; zero while it does not
	afresh     time.Time            // when everything was last read afresh
	unanswered time.Time            // since when the table does not answer what the member asked of it
	neglect    neglect              // what the assigner leaves undone, as the next in line sees it
	tookTurn   shards.Term          // the assigner whose term this member ended when it was its turn
	impatient  bool                 // the assigner renews its Lease, and is to be replaced
	unused     map[string]time.Time // since when a Lease of the group is of no use
	setbacks   map[string]setback   // by the name of a Lease, or the digest of keys
	unowned    map[string]time.Time // since when nobody has owned a key; zero once that was logged
	unownedAt  uint64               // the version of the table that says so
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

// wake makes run decide again.
func (a *assigner) wake() {
	a.mu.Lock()
	a.dirty = true
	a.mu.Unlock()
	a.news.signal()
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
			if errors.As(err, &fault) && a.group.once("cannot assign: "+fault.kind) {
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
		return a.awaitOtherVersion(ctx, v)
	case !t.exists || t.table == nil:
		if v.listed == 0 {
			return maxDuration, nil // its members are about to be listed
		}
		return a.beginAnew(ctx, v)
	case t.table.Buckets != g.buckets:
		return a.awaitOtherKeys(ctx, v)
	}
	if !v.now.Before(a.beginAt) {
		a.beginAt = time.Time{}
	}
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
		a.observeMissing(v)
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

// readAfresh reads everything afresh, not before at, at most once in each renew interval, and not while a read that it
// would cancel may still be answered. It returns when to look again.
func (a *assigner) readAfresh(v view, at time.Time) time.Duration {
	c := a.group.campaign
	interval := max(c.options.renewInterval, c.acquireTimeout.current())
	if wait := later(at, a.afresh.Add(interval)).Sub(v.now); wait > 0 {
		return wait
	}
	a.afresh = v.now
	a.membership.readAfresh()
	return interval
}

// catchUp reads the table afresh if others have reported a newer one for longer than a watch takes. It ends the term if
// that version is not read within the renew deadline. The time for a still newer version begins when this one is read,
// so that a member that reads slowly keeps its term. It returns when to look again.
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
		a.awaited = 0
		return maxDuration
	}
	if a.awaited <= v.table.record.version {
		a.awaited, a.awaitedAt = newest, v.now
	}
	if v.now.Sub(a.awaitedAt) > o.renewDeadline {
		a.membership.session.lose(lostBecause(expired, "the group's table was not read for %v", o.renewDeadline))
		return maxDuration
	}
	return a.readAfresh(v, a.awaitedAt.Add(min(o.renewInterval/3, time.Second)))
}
