package leasehold

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// A planner makes the plan of the next table out of what is known.
type planner struct {
	group   *group
	missing *missingTerms
	rests   *restingKeys
	epochs  *epochs

	setbacks setbacks                  // by digest, of sets of keys that could not be read
	first    map[shards.Term]time.Time // when a term was first seen to report the epoch; zero if it had keys then
	rollout  shards.Rollout
	observed uint64 // the version of the table that the rollout was told of last
}

// observe tells the rollout of a table that is new.
func (p *planner) observe(v view) {
	if p.observed != v.table.record.version {
		p.observed = v.table.record.version
		p.rollout.Observe(v.table.table, v.now)
	}
}

// An evidence is how long what a plan is based on stays as it is, and whether it is all that there is.
type evidence struct {
	until  time.Time // then something changes by time alone
	unread bool      // the keys of a member could not be read
}

// plan returns the plan of the next table, by what is known now.
func (p *planner) plan(ctx context.Context, v view) (*shards.Plan, evidence) {
	t := v.table.table
	members, e := p.sharers(ctx, v)
	plan := &shards.Plan{
		Table: t, Assigner: v.me, Members: members, Moves: p.group.campaign.options.maxMoves(), Open: true,
		Rests: p.rests.at(v.now), Holds: v.now.Before(p.epochs.hold),
	}
	if plan.Holds {
		e.until = earlier(e.until, p.epochs.hold)
	}
	if p.group.buckets == 0 {
		plan.Names = v.table.names
	}
	for _, r := range t.Rows {
		over, at := p.missing.ended(v, r)
		plan.Ended, plan.Resumes = append(plan.Ended, over), append(plan.Resumes, over && p.resumes(v, r.Term))
		if !over && !at.IsZero() {
			e.until = earlier(e.until, at)
		}
	}
	return plan, e
}

// sharers returns the members that go by the table and whose keys are known, and when one of them will no longer be
// new. Of all other members, keys stay with those that have them, and no more are given to them.
func (p *planner) sharers(ctx context.Context, v view) (members []shards.Member, e evidence) {
	e.until = v.now.Add(maxDuration)
	used := map[string]bool{v.table.table.Keys: true}
	reporting := p.reporting(v)
	for _, m := range reporting {
		if own := m.Report.Own; p.group.buckets == 0 && own != "" {
			used[own] = true
			var err error
			m.Knows, err = p.keysOf(ctx, v, own)
			e.unread = e.unread || err != nil
			if err != nil && err != errKeysMissing { // by having none it learns that nobody can read them
				e.until = earlier(e.until, p.setbacks[own].until)
				continue
			}
		}
		if at := p.newUntil(v, m.Term); v.now.Before(at) {
			m.New = true
			e.until = earlier(e.until, at)
		}
		members = append(members, m)
	}
	p.forgetOthers(reporting)
	p.group.forgetSets(used)
	return members, e
}

// reporting returns the members whose reports are of the table's epoch, in the order of their Leases.
func (p *planner) reporting(v view) (members []shards.Member) {
	g, t := p.group, v.table.table
	// We give ourselves keys only once our Lease reports the epoch: a member that begins another must see it.
	if stored := v.members[v.me.Lease].report; stored.Acquired == v.me.Acquired && stored.Epoch == t.Epoch {
		members = append(members, shards.Member{Row: v.me, Report: v.report})
	}
	for name, m := range v.members {
		if name == v.me.Lease || !g.isMember(name) || !m.seen.held() || !m.seen.expiresAt().After(v.now) {
			continue
		}
		term, _ := termOf(name, m.seen.record)
		report := v.reportOf(term, m)
		members = append(members, shards.Member{Report: report, Row: shards.Row{
			Term: term, Seen: m.seen.version, Identity: m.seen.identity,
			Weight: report.Weight, Seconds: int(m.seen.wait / time.Second),
		}})
	}
	members = slices.DeleteFunc(members, func(m shards.Member) bool {
		return m.Report.Epoch != t.Epoch || m.Report.Buckets != g.buckets
	})
	slices.SortFunc(members, func(x, y shards.Member) int { return strings.Compare(x.Lease, y.Lease) })
	return members
}

// errPutOff says that keys could not be read just now.
var errPutOff = errors.New("the keys could not be read, and are tried again")

// keysOf returns the keys with a digest, that a member knows.
func (p *planner) keysOf(ctx context.Context, v view, digest string) ([]string, error) {
	if v.now.Before(p.setbacks[digest].until) {
		return nil, errPutOff
	}
	keys, err := p.group.names(ctx, digest)
	if err != nil && err != errKeysMissing {
		p.setbacks.putOff(digest, err, p.group.campaign)
		return nil, err
	}
	delete(p.setbacks, digest)
	return keys, err
}

// newUntil returns until when no keys move to the member of a term, because it is new.
func (p *planner) newUntil(v view, term shards.Term) time.Time {
	first, ok := p.first[term]
	if !ok {
		if !v.table.table.GivesAny(term) {
			first = v.now
		}
		p.first[term] = first
	}
	o := p.group.campaign.options
	if o.group.settle >= 0 {
		return first.Add(o.group.settle)
	}
	return first.Add(p.rollout.Settle(o.renewInterval, first))
}

// forgetOthers forgets when terms were first seen that are not among members.
func (p *planner) forgetOthers(members []shards.Member) {
	for term := range p.first {
		if !slices.ContainsFunc(members, func(m shards.Member) bool { return m.Term == term }) {
			delete(p.first, term)
		}
	}
}

// resumes reports whether the member of a term that has ended is about to go on in a new one.
func (p *planner) resumes(v view, term shards.Term) bool {
	m, ok := v.members[term.Lease]
	if !ok || !m.seen.held() {
		return false
	}
	now, _ := termOf(term.Lease, m.seen.record)
	reported := m.report.Acquired == now.Acquired && m.report.Epoch != 0
	return now != term && !reported && v.now.Sub(m.live) < p.group.campaign.options.renewInterval
}
