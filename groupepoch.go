package leasehold

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// epochs begins an epoch where the table cannot be relied on, and finds out when one may give keys.
type epochs struct {
	group   *group
	clock   clock
	roster  *roster
	missing *missingTerms
	fences  *fences
	writer  *tableWriter

	// About the epoch of the table that this member assigns by. They may outlive a time as standby, which is right only
	// because a table that is not open has no row but the assigner's, so that all members follow all Leases and see
	// deletions.
	epoch   uint64
	since   time.Time // since when that epoch, and all members, are known
	counted bool      // so were members without the group's label, when it could have given keys

	// About the epoch that this member began last:
	untraced uint64    // that epoch, if there was no trace of an earlier table; else 0
	hold     time.Time // until when it gives nothing, for others to join
	nextAt   time.Time // when another may begin; zero if that is past, and there is a table
}

// observe finds that v has a table that can be read.
func (e *epochs) observe(v view) {
	if !v.now.Before(e.nextAt) {
		e.nextAt = time.Time{}
	}
	if e.untraced != v.table.table.Epoch {
		e.foundTrace() // should it be written late yet, there is a trace
	}
}

// foundTrace finds that there was an earlier table.
func (e *epochs) foundTrace() { e.untraced = 0 }

// enter finds that all members are known as of t. If its epoch is new, the wait until that opens begins.
func (e *epochs) enter(t *shards.Table) {
	if t.Epoch != e.epoch {
		e.epoch, e.since = t.Epoch, e.clock.now().mono // not the view's, which may be before the list that it has
	}
}

// opens is the wait of a table that may open.
const opens = time.Duration(-1)

// untilOpen returns how long to wait before the table's epoch may give keys, or opens. The wait is 0 when more is known
// now.
func (e *epochs) untilOpen(ctx context.Context, v view, ready bool) (time.Duration, error) {
	t := v.table.table
	if !ready {
		e.counted = false
		return maxDuration, nil
	}
	// Members may live whose Leases were deleted: before they could be listed, or since.
	until := v.deletedHolderUntil
	if e.untraced != t.Epoch {
		until = later(until, e.since.Add(e.group.campaign.options.duration))
	}
	if left := until.Sub(v.now); left > 0 {
		e.counted = false
		return left, nil
	}
	if !e.counted {
		err := e.roster.listAll(ctx, v.table.record.version)
		e.counted = err == nil
		return 0, err
	}
	return opens, nil
}

// beginFirst begins an epoch because there is no table, or none that can be read.
func (e *epochs) beginFirst(ctx context.Context, v view) (time.Duration, error) {
	g := e.group
	if v.report.Weight == 0 {
		return maxDuration, nil
	}
	if g.buckets == 0 && v.report.Own == "" {
		return maxDuration, nil // until its keys are published
	}
	if e.nextAt.IsZero() { // not all at once
		e.nextAt = v.now.Add(g.campaign.options.between(0, gathering(g.campaign.options)))
	}
	return e.begin(ctx, v, nil, "the group's table cannot be read; beginning a new one", "error", v.table.err)
}

// begin writes the first table of an epoch, and logs why where there was a table. If this member began another epoch
// within the renew interval, it only returns how long to wait: somebody may damage or restore each table.
func (e *epochs) begin(
	ctx context.Context, v view, old *shards.Table, why string, attributes ...any,
) (time.Duration, error) {
	if wait := e.nextAt.Sub(v.now); wait > 0 {
		return wait, nil
	}
	g := e.group
	o := g.campaign.options
	first := shards.NewTable(old, rand.Uint64()|1, rand.Uint64(), v.me, g.buckets)
	e.untraced = 0
	if !v.table.exists && !e.hasTrace(v) {
		e.untraced = first.Epoch
	}
	e.hold = v.now.Add(min(o.renewInterval, time.Second))
	written, err := e.writer.write(ctx, v, first, nil)
	if written {
		e.nextAt = v.now.Add(o.renewInterval)
	}
	if written && v.table.exists {
		g.campaign.log.warn(why, append([]any{"group", g.client.group}, attributes...)...)
	}
	return gathering(o), err
}

// hasTrace reports whether there is a trace of an earlier table.
func (e *epochs) hasTrace(v view) bool {
	trace := e.group.hasSeenTable()
	for _, m := range v.members {
		trace = trace || m.report.Epoch != 0 || m.garbled
	}
	return trace
}

// awaitOtherKeys waits until the members that share out other keys, in another number of buckets, are gone.
func (e *epochs) awaitOtherKeys(ctx context.Context, v view) (time.Duration, error) {
	g, t := e.group, v.table.table
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
		return e.roster.survey(ctx, v)
	}
	wait := maxDuration
	for _, r := range t.Rows {
		m, ok := v.members[r.Lease]
		if term, held := termOf(r.Lease, m.seen.record); ok && held && term == r.Term {
			left := e.fences.untilFence(v, r.Lease, m)
			if left <= 0 {
				e.fences.fence(ctx, v, r.Lease, m)
				return shortestDelay, nil
			}
			wait = min(wait, left)
			continue
		}
		if ended, at := e.missing.ended(v, r); !ended {
			wait = min(wait, max(at.Sub(v.now), gathering(g.campaign.options)))
		}
	}
	if wait < maxDuration {
		return wait, nil
	}
	return e.begin(ctx, v, t,
		"the members that shared out other keys are gone; beginning a new table")
}

// awaitOtherVersion waits until no member is live that can read the table, which another version of the program wrote:
// such a member's report has the table's format. A member that has not reported in its term may be one.
func (e *epochs) awaitOtherVersion(ctx context.Context, v view) (time.Duration, error) {
	g := e.group
	if v.surveyed < v.table.record.version {
		if v.listed == 0 {
			return maxDuration, nil // its members are about to be listed
		}
		return e.roster.survey(ctx, v)
	}
	wait := maxDuration
	for name, m := range v.members {
		term, held := termOf(name, m.seen.record)
		if !g.isMember(name) || name == v.me.Lease || !held || m.report.Acquired == term.Acquired {
			continue
		}
		left := e.fences.untilFence(v, name, m)
		if left <= 0 {
			e.fences.fence(ctx, v, name, m)
			return shortestDelay, nil
		}
		wait = min(wait, left)
	}
	if wait == maxDuration {
		return e.beginFirst(ctx, v)
	}
	if g.once(v.table.err.Error()) {
		g.campaign.log.error("this member does not join: another version of the program shares out the keys; "+
			"waiting until its members are gone", "group", g.client.group, "error", v.table.err)
	}
	return wait, nil
}
