package leasehold

import (
	"context"
	"slices"
	"time"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// A standby watches the assigner on behalf of a member that does not assign.
type standby struct {
	group   *group
	missing *missingTerms
	fences  *fences
	fresh   *freshReads
	planner *planner

	unanswered time.Time   // since when the table does not answer what the member asked of it
	neglect    neglect     // what the assigner leaves undone, as the next in line sees it
	tookTurn   shards.Term // the assigner whose term this member ended when it was its turn
	impatient  bool        // the assigner renews its Lease, and this member takes over all the same
}

// await returns after which time to be called again; 0 when this member is to take over.
func (s *standby) await(ctx context.Context, v view) (time.Duration, error) {
	o, t := s.group.campaign.options, v.table.table
	s.impatient = false
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
		wait := s.fences.untilFence(v, t.Assigner.Lease, m) + turn
		if wait <= 0 {
			s.tookTurn = t.Assigner
			s.fences.fence(ctx, v, t.Assigner.Lease, m)
			return shortestDelay, nil
		}
		patience := min(s.patience(v, turn), s.neglected(ctx, v))
		s.impatient = patience <= 0
		return min(wait, patience), nil
	}
	row := shards.Row{Term: t.Assigner}
	if i := slices.IndexFunc(t.Rows, func(r shards.Row) bool { return r.Term == t.Assigner }); i >= 0 {
		row = t.Rows[i]
	}
	ended, at := s.missing.ended(v, row)
	switch {
	case !ended && !at.IsZero():
		return max(at.Sub(v.now), shortestDelay), nil
	case !ended && v.listed == 0:
		return 0, nil // which lists the members
	case !ended:
		return maxDuration, nil // until more is known of it
	case t.Assigner.Lease == v.me.Lease || t.Assigner == s.tookTurn || turn == 0:
		return 0, nil
	}
	since := v.now
	if ok {
		since = m.live
	} else if missing, ok := s.missing.since[row.Term]; ok {
		since = missing.Add(o.duration)
	}
	return max(since.Add(turn).Sub(v.now), 0), nil
}

// observeMissing finds, for the next in line, the terms of the table whose Leases were deleted. So the wait for their
// members, which may not have heard of that, has begun when this member takes over: it counts from what was observed
// here.
func (s *standby) observeMissing(v view) {
	if v.rank != 1 || v.listed == 0 {
		return
	}
	for _, r := range v.table.table.Rows {
		s.missing.ended(v, r) // queues a Lease that seems missing to be read
	}
}

// patience returns how long to wait yet for an assigner that renews its Lease to answer what this member asked of it.
func (s *standby) patience(v view, turn time.Duration) time.Duration {
	o, t := s.group.campaign.options, v.table.table
	switch {
	case !v.waiting:
		s.unanswered = time.Time{}
		return maxDuration
	case s.unanswered.IsZero():
		s.unanswered = v.now
	}
	switch {
	case v.report.Epoch != t.Epoch && v.report.Bad != t.Epoch:
		return maxDuration // the work of another epoch is to return first: nobody could answer
	case !t.Open && v.rank > 1:
		return maxDuration // it is not known here whether the table may open
	}
	limit := s.unanswered.Add(o.duration + turn)
	if !t.Open {
		limit = limit.Add(o.duration) // it waits for as long before the table opens
	}
	// Perhaps it does answer, and only we do not hear it.
	if again := limit.Add(-o.duration / 2); s.fresh.last.Before(again) {
		return min(limit.Sub(v.now), s.fresh.readAfresh(v, again))
	}
	return limit.Sub(v.now)
}

// A neglect is what an assigner that renews its Lease leaves undone.
type neglect struct {
	checkAt time.Time // when to see what it did; zero if nothing has happened since it had done everything
	version uint64    // of the table that something was missing of
	since   time.Time // since when
}

// neglected returns how long to wait yet for an assigner that renews its Lease to do what the next in line, which
// watches all members too, would do in its place. It is to have the time for that before the table is planned here, so
// that it is seldom planned twice.
func (s *standby) neglected(ctx context.Context, v view) time.Duration {
	o, t, n := s.group.campaign.options, v.table.table, &s.neglect
	if v.rank != 1 || v.listed == 0 || !t.Open || v.report.Epoch != t.Epoch {
		*n = neglect{}
		return maxDuration
	}
	silent := ""
	for name, m := range v.members {
		if name != v.me.Lease && s.group.isMember(name) && m.seen.held() && s.fences.untilFence(v, name, m) <= 0 {
			silent = name
		}
	}
	if n.checkAt.IsZero() {
		if !v.dirty && silent == "" {
			return maxDuration
		}
		n.checkAt = v.now.Add(o.renewInterval)
	}
	if wait := n.checkAt.Sub(v.now); wait > 0 {
		return wait
	}
	patience := o.duration - o.renewInterval
	if silent == "" {
		undone, ungiven := s.undone(ctx, v)
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
	n.checkAt = n.since.Add(patience)
	if wait := n.checkAt.Sub(v.now); wait > 0 || silent == "" {
		return wait
	}
	// Whether its silence is the assigner's fault shows when its Lease can be fenced: then its keys are free, and ours
	// to give.
	s.fences.fence(ctx, v, silent, v.members[silent])
	return shortestDelay
}

// undone reports whether we would change the table in the assigner's place, but for moving keys that have an owner and
// giving those that have none, and whether there are any to give.
func (s *standby) undone(ctx context.Context, v view) (undone, ungiven bool) {
	t := v.table.table
	i := slices.IndexFunc(t.Rows, func(r shards.Row) bool { return r.Term == t.Assigner })
	if i < 0 {
		return false, false
	}
	p, e := s.planner.plan(ctx, v)
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
