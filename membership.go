package leasehold

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// A membership is a member in one term: the session of its own Lease, what it owns, and what it sees of the group. The
// owner's side runs on the goroutine of the campaign, the assigner's on one of its own.
type membership struct {
	group    *group
	session  *session
	roster   *roster
	assigner *assigner
	news     wakeup // the table has changed, or work has returned
	unread   wakeup // others seem not to know the member's keys
	workers  errgroup.Group

	// Protected by the group's mu:
	owner   *shards.Owner
	table   tableView
	applied []string           // the names of the table that the owner went by last
	version uint64             // of that table
	reread  context.CancelFunc // reads the table afresh, and watches it again
	ending  time.Time          // since when the work of a table that was replaced is to end; zero if none is
	untold  time.Time          // since when work has returned that the others were not told of; zero if none has
}

func newMembership(g *group, s *session) *membership {
	m := &membership{group: g, session: s, news: newWakeup(), unread: newWakeup()}
	m.roster = newRoster(g, m.selection)
	m.assigner = newAssigner(m)
	g.mu.Lock()
	defer g.mu.Unlock()
	weight := g.campaign.options.group.weight
	if g.isLeaving() {
		weight = 0
	}
	maps.Copy(g.earlier, g.sessions)
	clear(g.sessions)
	m.owner = shards.NewOwner(m.term(), weight, g.sets.digest, g.buckets, &g.past, g.acceptsLocked)
	g.present = m // while mu is held, so that no later set of keys is missed
	return m
}

// term returns the term as tables name it.
func (m *membership) term() shards.Term {
	t := m.session.term
	return shards.Term{Lease: m.group.campaign.lease.name, UID: string(t.uid), Acquired: t.acquired.UnixMicro()}
}

// row returns what tables say of the member.
func (m *membership) row() shards.Row {
	c := m.group.campaign
	return shards.Row{
		Term: m.term(), Seen: m.session.token, Identity: c.lease.identity,
		Weight: c.options.group.weight, Seconds: int(c.lease.seconds()),
	}
}

// selection returns the name of the Lease that the roster is to follow, "" for all.
func (m *membership) selection() string {
	m.group.mu.Lock()
	defer m.group.mu.Unlock()
	return m.table.selection(m.term(), m.group.buckets)
}

// tell lets the others know soon what has changed for the member.
func (m *membership) tell() {
	m.roster.wake()
	m.session.renewSoon()
}

// tellReturned lets the others know of work that has returned: once all that is to end has, or what has returned within
// the time for which such news is gathered. It returns after which time it is to be called again; 0 if there is none.
func (m *membership) tellReturned() time.Duration {
	c := m.group.campaign
	m.group.mu.Lock()
	wait := time.Duration(0)
	if m.owner.Stopping() {
		wait = m.untold.Add(gathering(c.options)).Sub(c.clock.now().mono)
	}
	switch {
	case m.untold.IsZero():
		m.group.mu.Unlock()
		return 0
	case wait > 0:
		m.group.mu.Unlock()
		return wait
	}
	m.untold = time.Time{}
	m.owner.Told()
	m.group.mu.Unlock()
	m.tell()
	return 0
}

// reportLocked returns what the member reports. The caller holds the group's mu.
func (m *membership) reportLocked() shards.Report {
	var refused []int
	refuse := func(key string) {
		if i, ok := m.indexLocked(key); ok {
			refused = append(refused, i)
		}
	}
	for key := range m.group.earlier {
		refuse(key)
	}
	for _, key := range m.group.sets.dropped {
		refuse(key)
	}
	slices.Sort(refused)
	r := m.owner.Report(slices.Compact(refused))
	r.Version = m.table.record.version
	return r
}

// indexLocked returns the index of key in the table that the owner went by last.
func (m *membership) indexLocked(key string) (int, bool) {
	if m.group.buckets > 0 {
		i, err := strconv.Atoi(key)
		return i, err == nil
	}
	return slices.BinarySearch(m.applied, key)
}

// run is the member's side of the term. It returns when the term is over, or when the member leaves and all work of the
// term has returned.
func (m *membership) run() {
	c := m.group.campaign
	ctx, cancel := context.WithCancel(context.WithoutCancel(m.session.ctx))
	defer m.workers.Wait()
	defer cancel()
	m.workers.Go(func() error { m.followTable(ctx); return nil })
	m.workers.Go(func() error { m.roster.follow(ctx); return nil })
	m.workers.Go(func() error { m.assigner.run(ctx); return nil })
	if m.group.buckets == 0 {
		m.workers.Go(func() error { m.keepPublished(ctx); return nil })
	}
	done, leaving := c.ctx.Done(), m.group.leaving
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if m.session.loss() != nil {
			m.stopAll()
			return
		}
		again := sooner(m.apply(), m.group.reportOverdue())
		if m.group.isLeaving() && m.isIdle() {
			return
		}
		if again = sooner(again, m.tellReturned()); again > 0 {
			timer.Reset(c.clock.wait(again))
		}
		select {
		case <-m.news:
		case <-timer.C:
		case <-m.session.lost:
		case <-done:
			done = nil
			m.group.leave()
		case <-leaving:
			leaving = nil
			m.group.mu.Lock()
			m.owner.Leave()
			m.group.mu.Unlock()
			m.session.cancel(orReleased(context.Cause(c.ctx)))
			m.stopAll()
			m.tell()
		}
	}
}

// sooner returns the shorter of two waits; 0 is none.
func sooner(a, b time.Duration) time.Duration { return cmp.Or(min(a, b), max(a, b)) }

// keepPublished publishes the keys again, once in each term, because others delete what no member reports for long, and
// an interval after a table that is as if nobody could read them: it lacks some, or leaves the member none.
func (m *membership) keepPublished(ctx context.Context) {
	m.group.republish(ctx)
	for {
		select {
		case <-m.unread:
		case <-ctx.Done():
			return
		}
		sleep(ctx, m.group.campaign.clock, m.group.campaign.options.renewInterval)
		m.group.mu.Lock()
		unread := !m.owner.Keeps() || m.lacksLocked()
		m.group.mu.Unlock()
		if unread {
			m.group.republish(ctx)
		}
	}
}

// orReleased returns why a member leaves: err or, if that is nil, that it wanted to.
func orReleased(err error) error {
	if err == nil {
		return ErrReleased
	}
	return err
}

// stopAll tells the worker that all sessions of the term have ended.
func (m *membership) stopAll() {
	cause := m.session.loss()
	if cause == nil {
		cause = orReleased(context.Cause(m.session.ctx))
	}
	for _, s := range m.all() {
		m.group.stop(s, cause) // unless its context ended with the term's
	}
}

// apply goes by the newest table. It returns after which time it is to be called again; 0 if only news matters.
func (m *membership) apply() time.Duration {
	g := m.group
	if m.session.trustLeft() < g.campaign.options.renewDeadline/2 {
		m.session.renewSoon()
		return g.campaign.options.renewInterval / 10 // a session begins with at least so much trust
	}
	g.mu.Lock()
	t := m.table
	foreign := t.foreign && !g.sawTable
	if foreign || t.table == nil || m.version == t.record.version && !m.owner.Ending() {
		g.mu.Unlock()
		if foreign {
			g.fail(fmt.Errorf("leasehold: lease %s/%s: %w",
				g.campaign.lease.namespace, g.client.group, errForeignTable))
		}
		return 0
	}
	next := m.compareLocked(t)
	g.mu.Unlock()
	if next.lost {
		m.session.lose(errTableReplaced)
		return 0
	}
	m.act(next)
	return next.again
}

// A tableChange is what a table changes for the member.
type tableChange struct {
	start []*keySession // whose work is to begin
	stop  []*keySession // whose keys are asked back
	end   bool          // all work is to end, because its table is gone
	lost  bool          // the work of a table that is gone has not returned for the duration: the term ends
	tell  bool          // there is something to report that waits for no work
	again time.Duration // after which time to compare again; 0 if only news matters
}

// compareLocked tells the owner of table t, and makes the sessions of the keys that the table gives. The caller holds
// the group's mu.
func (m *membership) compareLocked(t tableView) tableChange {
	g := m.group
	var change shards.Change
	others := t.table.Buckets != g.buckets // the table shares out other keys
	if others {
		change = m.owner.Abandon()
	} else {
		change = m.owner.Apply(t.table, t.names)
	}
	next := tableChange{end: change.End, tell: change.Tell}
	if m.owner.Ending() {
		if next.again = m.untilGivenUpLocked(); next.again <= 0 {
			return tableChange{lost: true}
		}
	} else if m.ending = (time.Time{}); !others {
		m.version, m.applied = t.record.version, t.names
	}
	for _, key := range change.Start {
		s := newKeySession(m, key, t.record.version)
		g.sessions[key] = s
		g.started++
		next.start = append(next.start, s)
	}
	for _, key := range change.Stop {
		if s := g.sessions[key]; s != nil {
			next.stop = append(next.stop, s)
		}
	}
	if len(change.Stop) > 0 && !m.owner.Keeps() || m.lacksLocked() {
		m.unread.signal()
	}
	return next
}

// act tells the worker and the others what a table has changed.
func (m *membership) act(c tableChange) {
	if c.end {
		m.endAll()
	}
	for _, s := range c.stop {
		m.group.stop(s, ErrMoved)
	}
	for _, s := range c.start {
		m.group.worker.start(s)
	}
	if c.tell {
		m.tell()
	}
}

// endAll ends all sessions because their table is gone.
func (m *membership) endAll() {
	g := m.group
	ended := 0
	for _, s := range m.all() {
		if s.ctx.Context.Err() == nil {
			ended++
		}
		g.stop(s, errTableReplaced)
	}
	if ended > 0 {
		g.campaign.log.warn("the group's table was replaced; all work ends and is given out again", "group",
			g.client.group)
	}
}

// untilGivenUpLocked returns how long to wait yet for work that is to end because the table was replaced. A member that
// waits longer would keep the whole group from going on: it begins another term. The caller holds the group's mu.
func (m *membership) untilGivenUpLocked() time.Duration {
	c := m.group.campaign
	now := c.clock.now().mono
	if m.ending.IsZero() {
		m.ending = now
	}
	return m.ending.Add(c.options.duration).Sub(now)
}

var errTableReplaced = lostBecause(edited, "the group's table was replaced")

// all returns the sessions of the term whose work has not returned.
func (m *membership) all() []*keySession {
	m.group.mu.Lock()
	defer m.group.mu.Unlock()
	return slices.Collect(maps.Values(m.group.sessions))
}

// isIdle reports whether all work of the term has returned.
func (m *membership) isIdle() bool {
	m.group.mu.Lock()
	defer m.group.mu.Unlock()
	return len(m.group.sessions) == 0
}
