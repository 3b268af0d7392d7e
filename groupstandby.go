package leasehold

import (
	"context"
	"slices"
	"time"

	"github.com/leasehold-go/leasehold/internal/shards"
)

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
		wait := a.untilFence(v, t.Assigner.Lease, m) + turn
		if wait <= 0 {
			a.tookTurn = t.Assigner
			a.fence(ctx, v, t.Assigner.Lease, m)
			return shortestDelay, nil
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
	case t.Assigner.Lease == v.me.Lease || t.Assigner == a.tookTurn || turn == 0:
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

// observeMissing finds, for the next in line, the terms of the table whose Leases were deleted. So the wait for their
// members, which may not have heard of that, has begun when this member takes over: it counts from what was observed
// here.
func (a *assigner) observeMissing(v view) {
	if v.rank != 1 || v.listed == 0 {
		return
	}
	for _, r := range v.table.table.Rows {
		a.ended(v, r) // queues a Lease that seems missing to be read
	}
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
// seldom planned twice.
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
