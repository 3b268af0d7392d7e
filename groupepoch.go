package leasehold

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/leasehold-go/leasehold/internal/shards"
)

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
	err := a.writeNew(ctx, v, nil, "the group's table cannot be read; beginning a new one", "error", v.table.err)
	if err == nil {
		a.beginAt = v.now.Add(g.campaign.options.renewInterval) // not sooner again, if this one is damaged too
	}
	return gathering(g.campaign.options), err
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
		saw = saw || m.report.Epoch != 0 || m.garbled
	}
	return saw
}

// sawTable reports whether this process has seen a table of the group, also one that it cannot read or go by.
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
				a.fence(ctx, v, r.Lease, m)
				return shortestDelay, nil
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

// awaitOtherVersion waits until no member is live that can read the table, which another version of the program wrote:
// such a member's report has the table's format. A member that has not reported in its term may be one.
func (a *assigner) awaitOtherVersion(ctx context.Context, v view) (time.Duration, error) {
	g := a.group
	if v.surveyed < v.table.record.version {
		if v.listed == 0 {
			return maxDuration, nil // its members are about to be listed
		}
		return a.survey(ctx, v)
	}
	wait := maxDuration
	for name, m := range v.members {
		term, held := termOf(name, m.seen.record)
		if !g.isMember(name) || name == v.me.Lease || !held || m.report.Acquired == term.Acquired {
			continue
		}
		left := a.untilFence(v, name, m)
		if left <= 0 {
			a.fence(ctx, v, name, m)
			return shortestDelay, nil
		}
		wait = min(wait, left)
	}
	if wait == maxDuration {
		return a.beginAnew(ctx, v)
	}
	if g.once(v.table.err.Error()) {
		g.campaign.log.error("this member does not join: another version of the program shares out the keys; "+
			"waiting until its members are gone", "group", g.client.group, "error", v.table.err)
	}
	return wait, nil
}
