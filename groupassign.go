package leasehold

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// assign writes the next table, if there is anything to change.
func (a *assigner) assign(ctx context.Context, v view) (time.Duration, error) {
	t := v.table.table
	a.writer.recognise(v.table)
	if (!a.writer.wrote(v.table) || !t.Open) && v.surveyed < v.table.record.version {
		// Somebody else wrote it, or it is new: what members reported has to be compared with it.
		return a.roster.survey(ctx, v)
	}
	a.epochs.enter(t)
	s := a.inspect(v)
	switch {
	case s.contradicting != "":
		return a.epochs.begin(ctx, v, t,
			"the group's table is not the one that its members went by: it was restored or edited; beginning a new one",
			"member", v.members[s.contradicting].seen.identity)
	case s.silent != "":
		a.fences.fence(ctx, v, s.silent, v.members[s.silent])
		return shortestDelay, nil
	case v.report.Epoch != t.Epoch:
		return maxDuration, nil // the table is new to ourselves
	case !t.Open:
		if wait, err := a.epochs.untilOpen(ctx, v, s.ready); wait != opens || err != nil {
			return min(s.wait, max(wait, 0), a.unowned.report(v)), err
		}
	}
	p, e := a.planner.plan(ctx, v)
	if !p.Same(a.planned) {
		if wait := a.writer.untilNext(v.now); wait > 0 {
			return wait, nil
		}
		if next := p.Next(rand.Uint64()); next.Changed {
			err := a.writeNext(ctx, v, next)
			if errors.As(err, new(groupFault)) {
				a.planned = p // no further try mends it, until something changes
			}
			return 0, err
		}
		a.planned = p
	}
	again := earlier(e.until, a.rests.next(v.now))
	wait := min(s.wait, again.Sub(v.now), a.unowned.report(v))
	a.unused.tidy(ctx, v)
	return wait, nil
}

// writeNext writes the table that was planned.
func (a *assigner) writeNext(ctx context.Context, v view, next shards.Next) error {
	var names []string // that are to be published
	if a.group.buckets == 0 && next.Table.Keys != v.table.table.Keys {
		names = next.Names
	}
	if written, err := a.writer.write(ctx, v, next.Table, names); !written {
		return err
	}
	if former := v.table.table.Assigner; former != v.me.Term && a.standby.impatient {
		a.group.campaign.log.warn("the member that assigns the group's keys does not answer; taking over",
			"group", a.group.client.group, "assigner", former.Lease)
	}
	a.rests.add(next.Freed, v.now)
	return nil
}

// An inspection is what the Leases of the members say that comes before the plan.
type inspection struct {
	contradicting string        // the Lease of one that went by another table; "" for none
	silent        string        // the Lease of one whose term is to be fenced; "" for none
	ready         bool          // all went by the table's epoch, or by none
	wait          time.Duration // until the next one is silent
}

// inspect reads the reports of all members, and finds who is silent.
func (a *assigner) inspect(v view) inspection {
	t := v.table.table
	s := inspection{ready: true, wait: maxDuration}
	for name, m := range v.members {
		term, held := termOf(name, m.seen.record)
		if !a.group.isMember(name) || !held {
			continue
		}
		if name == v.me.Lease {
			term = v.me.Term
		}
		report := v.reportOf(term, m)
		if t.Contradicts(report) {
			s.contradicting = name
		}
		if report.Epoch != 0 && report.Epoch != t.Epoch || m.garbled {
			a.epochs.foundTrace()
		}
		// In epoch 0 a term has read no table, and owns nothing.
		s.ready = s.ready && (report.Epoch == t.Epoch || report.Epoch == 0 && !m.garbled)
		if name == v.me.Lease {
			continue
		}
		if left := a.fences.untilFence(v, name, m); left > 0 {
			s.wait = min(s.wait, left)
		} else {
			s.silent = name
		}
	}
	return s
}
