package leasehold

import (
	"context"
	"errors"
	"time"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// An assigner watches over the group on behalf of one member: it writes the table if that names the member, and
// otherwise takes over from a member that does not. Its decisions are made on one goroutine, run, to which its parts
// belong; the roster is filled by others too.
//
// Whatever it writes is conditional on the table that it decided on, and rests on evidence that stays true, so that two
// that believe themselves to be named do no harm.
type assigner struct {
	membership *membership
	group      *group
	clock      clock
	roster     *roster
	missing    *missingTerms
	fresh      *freshReads
	fences     *fences
	rests      *restingKeys
	writer     *tableWriter
	epochs     *epochs
	planner    *planner
	standby    *standby
	unused     *unusedLeases
	unowned    *unownedKeys

	planned *shards.Plan // the last that changed nothing
}

func newAssigner(m *membership) *assigner {
	g, r := m.group, m.roster
	missing := &missingTerms{group: g, clock: g.campaign.clock, roster: r, since: map[shards.Term]time.Time{}}
	fresh := &freshReads{membership: m}
	fences := &fences{group: g, roster: r, fresh: fresh, setbacks: setbacks{}}
	rests := &restingKeys{options: g.campaign.options, byKey: map[string]keyRest{}}
	writer := &tableWriter{membership: m}
	epochs := &epochs{
		group: g, clock: g.campaign.clock, roster: r, missing: missing, fences: fences, writer: writer,
	}
	planner := &planner{
		group: g, missing: missing, rests: rests, epochs: epochs, setbacks: setbacks{},
		first: map[shards.Term]time.Time{}, rollout: shards.Rollout{Limit: 2 * g.campaign.options.duration},
	}
	return &assigner{
		membership: m, group: g, clock: g.campaign.clock, roster: r, missing: missing, fresh: fresh, fences: fences,
		rests: rests, writer: writer, epochs: epochs, planner: planner,
		standby: &standby{group: g, missing: missing, fences: fences, fresh: fresh, planner: planner},
		unused:  &unusedLeases{group: g, roster: r, since: map[string]time.Time{}, setbacks: setbacks{}},
		unowned: &unownedKeys{group: g, rests: rests},
	}
}

// run decides, until ctx ends.
func (a *assigner) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	delays := a.group.delays.assign
	delays.reset()
	for ctx.Err() == nil {
		wait, err := a.step(ctx)
		if err == nil && len(a.missing.unsure) > 0 {
			wait, err = 0, a.missing.readUnsure(ctx)
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
		for waiting := !a.roster.isDirty(); waiting; {
			select {
			case <-timer.C:
				waiting = false
			case <-a.roster.news:
				waiting = !a.roster.isDirty() // most news is that members are alive
			case <-ctx.Done():
				waiting = false
			}
		}
	}
}

// A view is what a step decides on. Nothing in it changes during the step.
type view struct {
	now     time.Time
	table   tableView
	me      shards.Row
	report  shards.Report // our own, now
	rank    int
	waiting bool // the table does not answer what we asked of it

	// Of the roster:
	members            map[string]memberView
	listed, surveyed   uint64
	deletedHolderUntil time.Time
	dirty              bool
	unread             bool // the Lease of the assigner, which alone is followed, was not read yet
}

func (a *assigner) view() view {
	g, m := a.group, a.membership
	v := view{now: a.clock.now().mono, me: m.row()}
	v.dirty = a.roster.takeDirty() // before all else is read: what changes from now on wakes the next step
	g.mu.Lock()
	v.table, v.report = m.table, m.reportLocked()
	if v.table.table != nil {
		v.rank = v.table.rank(v.me.Term)
		v.waiting = m.owner.Unanswered(v.table.table)
	}
	g.mu.Unlock()
	v.me.Weight = v.report.Weight
	a.roster.show(&v, v.table.selection(v.me.Term, g.buckets))
	return v
}

// reportOf returns what the member of a term, which m shows, reports in it.
func (v view) reportOf(term shards.Term, m memberView) shards.Report {
	switch {
	case term == v.me.Term:
		return v.report
	case m.report.Acquired == term.Acquired:
		return m.report
	}
	return shards.Report{}
}

// step makes the next decision. It returns after which time to make another if there is no news.
func (a *assigner) step(ctx context.Context) (time.Duration, error) {
	g := a.group
	v := a.view()
	t := v.table
	switch {
	case !t.known:
		return maxDuration, nil
	case t.foreign && t.exists:
		if g.hasSeenTable() && g.once("foreign "+string(t.record.uid)) {
			g.campaign.log.error(
				"the group's Lease is another program's now; no keys are given out until it is deleted",
				"group", g.client.group)
		}
		return maxDuration, nil
	case errors.As(t.err, new(shards.FormatError)):
		return a.epochs.awaitOtherVersion(ctx, v)
	case !t.exists || t.table == nil:
		if v.listed == 0 {
			return maxDuration, nil // its members are about to be listed
		}
		return a.epochs.beginFirst(ctx, v)
	case t.table.Buckets != g.buckets:
		return a.epochs.awaitOtherKeys(ctx, v)
	}
	a.planner.observe(v)
	a.epochs.observe(v)
	if t.table.Assigner != v.me.Term {
		if v.unread {
			return maxDuration, nil
		}
		a.standby.observeMissing(v)
		wait, err := a.standby.await(ctx, v)
		if wait > 0 || err != nil {
			return min(wait, a.fresh.catchUp(v), a.fresh.listen(v)), err
		}
		if v.listed == 0 {
			return 0, a.roster.listMembers(ctx)
		}
	}
	wait, err := a.assign(ctx, v)
	return min(wait, a.fresh.catchUp(v), a.fresh.listen(v)), err
}
