package leasehold

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// assign writes the next table, if there is anything to change.
func (a *assigner) assign(ctx context.Context, v view) (time.Duration, error) {
	c, t := a.group.campaign, v.table.table
	if v.table.text == a.wroteText {
		a.wrote, a.wroteText = v.table.record.version, ""
	}
	if (a.wrote != v.table.record.version || !t.Open) && v.surveyed < v.table.record.version {
		// Somebody else wrote it, or it is new: what members reported has to be compared with it.
		return a.survey(ctx, v)
	}
	if t.Epoch != a.epoch {
		a.epoch, a.closed = t.Epoch, a.clock.now().mono // not v.now, which may be before the list that v has
	}
	s := a.inspect(v)
	switch {
	case s.contradicting != "":
		return gathering(c.options), a.writeNew(ctx, v, t,
			"the group's table is not the one that its members went by: it was restored or edited; beginning a new one",
			"member", v.members[s.contradicting].seen.identity)
	case s.silent != "":
		a.fence(ctx, v, s.silent, v.members[s.silent])
		return shortestDelay, nil
	case v.report.Epoch != t.Epoch:
		return maxDuration, nil // the table is new to ourselves
	case !t.Open:
		if wait, err := a.untilOpen(ctx, v, s.ready); wait != opens || err != nil {
			return min(s.wait, max(wait, 0)), err
		}
	}
	p, e := a.plan(ctx, v)
	if !p.Same(a.planned) {
		if again := a.wroteAt.Add(gathering(c.options)).Sub(v.now); again > 0 && !a.wroteAt.IsZero() {
			return again, nil
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
	again := earlier(e.until, a.nextRest(v.now))
	return min(s.wait, again.Sub(v.now), a.reportUnowned(v)), a.tidy(ctx, v)
}

// An inspection is what the Leases of the members say that comes before the plan.
type inspection struct {
	contradicting string        // the Lease of one that went by another table; "" for none
	silent        string        // the Lease of one whose term is to be fenced; "" for none
	ready         bool          // all went by the table's epoch, or by none
	wait          time.Duration // until the next one is silent
}

// inspect looks at the Leases of all members.
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
		report := a.reportOf(v, term, m)
		if t.Contradicts(report) {
			s.contradicting = name
		}
		if report.Epoch != 0 && report.Epoch != t.Epoch || m.garbled {
			a.begun = 0 // a trace of an earlier table
		}
		// In epoch 0 a term has read no table, and owns nothing.
		s.ready = s.ready && (report.Epoch == t.Epoch || report.Epoch == 0 && !m.garbled)
		if name == v.me.Lease {
			continue
		}
		if left := a.untilFence(v, name, m); left > 0 {
			s.wait = min(s.wait, left)
		} else {
			s.silent = name
		}
	}
	return s
}

// opens is the wait of a table that may open.
const opens = time.Duration(-1)

// untilOpen returns how long to wait before the table's epoch may give keys, or opens. The wait is 0 when more is known
// now.
func (a *assigner) untilOpen(ctx context.Context, v view, ready bool) (time.Duration, error) {
	t := v.table.table
	if !ready {
		a.counted = false
		return maxDuration, nil
	}
	// Members may live whose Leases were deleted: before they could be listed, or since.
	ghosts := v.ghosts
	if a.begun != t.Epoch {
		ghosts = later(ghosts, a.closed.Add(a.group.campaign.options.duration))
	}
	if left := ghosts.Sub(v.now); left > 0 {
		a.counted = false
		return left, nil
	}
	if !a.counted {
		err := a.listAll(ctx)
		a.counted = err == nil
		return 0, err
	}
	return opens, nil
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

// sharers returns the members that go by the table and whose keys are known, and when one of them will have settled. Of
// all other members, keys stay with those that have them, and no more are given to them.
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
	// We give ourselves keys only once our Lease reports the epoch: a member that begins another must see it.
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

// write writes the table if it still is as v has it, after its keys if their names are not published yet, and reports
// whether that is certain.
func (a *assigner) write(ctx context.Context, v view, next *shards.Table, names []string) (bool, error) {
	g := a.group
	if len(next.Entries) > maxKeys {
		return false, groupFault{"keys", fmt.Sprintf("the members know %d keys together, want at most %d",
			len(next.Entries), maxKeys)}
	}
	text := next.Encode()
	if len(text) > maxAnnotation {
		return false, groupFault{"size", fmt.Sprintf(
			"the table has %d bytes, want at most %d: too many keys in too many runs", len(text), maxAnnotation)}
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
				HolderIdentity:       new(g.client.tableHolder()),
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
type groupFault struct{ kind, text string }

func (f groupFault) Error() string { return f.text }

// maxAnnotation is how long the text of a table may be, in bytes: all annotations of an object together have 256 KiB.
// Tests lower it.
var maxAnnotation = 250_000

// maxKeys is how many keys a table may have: a larger one could not be read back. Tests lower it.
var maxKeys = shards.MaxKeys
