package shards

import (
	"slices"
	"time"
)

// A Rollout recognises, by the tables of a group, that members are replaced: one joins, another leaves, and so on. A
// member that joins meanwhile is about to get the keys of the next that leaves, and need not get others before.
type Rollout struct {
	Limit time.Duration // the longest time that a new member waits because of a rollout

	epoch   uint64
	members map[string]bool // by Lease: those that the last table had, but for those that leave
	joined  []join          // those after which none of the others has left yet, the earliest first
	step    time.Duration   // from the last join that was followed by a leave, or a crash, to that
	left    time.Time       // when that was
}

// A join is when a member was first seen.
type join struct {
	lease string
	at    time.Time
}

// Observe records who joined and who left by t, which was seen at now.
func (r *Rollout) Observe(t *Table, now time.Time) {
	before := r.members
	r.members = map[string]bool{}
	for _, row := range t.Rows {
		if row.Weight > 0 {
			r.members[row.Lease] = true
		}
	}
	if t.Epoch != r.epoch { // who has just joined is not known
		r.epoch, r.joined = t.Epoch, nil
		return
	}
	fresh := map[string]bool{}
	for _, j := range r.joined {
		fresh[j.lease] = true
	}
	r.joined = slices.DeleteFunc(r.joined, func(j join) bool { return now.Sub(j.at) > r.Limit || !r.members[j.lease] })
	for lease := range before {
		if !r.members[lease] && !fresh[lease] && len(r.joined) > 0 {
			r.step, r.left, r.joined = now.Sub(r.joined[0].at), now, r.joined[1:]
		}
	}
	for lease := range r.members {
		if !before[lease] {
			r.joined = append(r.joined, join{lease, now})
		}
	}
}

// Settle returns for how long no keys move to a member that joined at a time: settle or, in a rollout, half as long
// again as the last step took.
func (r *Rollout) Settle(settle time.Duration, joined time.Time) time.Duration {
	wait := r.step + r.step/2
	if wait > r.Limit || joined.Sub(r.left) > r.Limit {
		return settle
	}
	return max(settle, wait)
}
