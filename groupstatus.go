package leasehold

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// A GroupStatus is the state of this process's part in a group (Spread, Join). Its JSON is stable.
type GroupStatus struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Identity  string `json:"identity"`
	Lease     string `json:"lease"` // the member's own

	// Assigner reports whether this member assigns the group's keys.
	Assigner bool `json:"assigner"`
	// Keys counts the keys of the group, Owned those that this process owns, Unowned those that nobody owns, and
	// Moving those that are asked back, as the table says. UnownedKeys are the first ten that nobody owns.
	Keys        int      `json:"keys"`
	Owned       int      `json:"owned"`
	Unowned     int      `json:"unowned"`
	Moving      int      `json:"moving"`
	UnownedKeys []string `json:"unownedKeys,omitempty"`
	// Overdue are the first ten keys whose work has not returned for the duration of the lease after its session ended.
	Overdue []string `json:"overdue,omitempty"`

	// Sessions counts the sessions of keys that began, and Ended those that ended, by why: moved (asked back), lost
	// (with the member's lease), returned, failed (the work returned an error), left (the process leaves).
	Sessions uint64            `json:"sessions"`
	Ended    map[string]uint64 `json:"ended"`
}

// maxNamed is how many keys a status or a log line names.
const maxNamed = 10

// endOf returns why the session s ended whose work has returned.
func endOf(s *keySession, failed bool) string {
	cause := context.Cause(s.ctx.Context)
	switch {
	case cause == nil && failed:
		return "failed"
	case cause == nil:
		return "returned"
	case errors.Is(cause, ErrMoved):
		return "moved"
	case errors.Is(cause, ErrLost):
		return "lost"
	case errors.Is(cause, ErrReleased) && s.group.campaign.ctx.Err() == nil && !s.group.isLeaving():
		return "returned"
	}
	return "left"
}

// status returns the state of the group.
func (g *group) status() GroupStatus {
	c := g.campaign
	g.mu.Lock()
	defer g.mu.Unlock()
	s := GroupStatus{
		Namespace: c.lease.namespace, Name: g.client.group, Identity: c.lease.identity, Lease: c.lease.name,
		Owned:    len(g.sessions) + len(g.earlier) - len(g.stopping),
		Sessions: g.started, Ended: maps.Clone(g.ended), Overdue: g.overdueLocked(),
	}
	m := g.present
	if m == nil || m.table.table == nil || m.table.table.Buckets != g.buckets {
		return s
	}
	t := m.table.table
	s.Assigner = t.Assigner == m.term()
	s.Keys = len(t.Entries)
	for i, e := range t.Entries {
		switch {
		case e.Owner < 0:
			s.Unowned++
			if len(s.UnownedKeys) < maxNamed {
				s.UnownedKeys = append(s.UnownedKeys, m.table.names[i])
			}
		case e.Asked != 0:
			s.Moving++
		}
	}
	return s
}

// overdueLocked returns keys whose work has not returned for long after its session ended. The caller holds mu.
func (g *group) overdueLocked() (keys []string) {
	now := g.campaign.clock.now().mono
	for s := range g.stopping {
		if now.Sub(s.stopped) >= g.campaign.options.duration {
			keys = append(keys, s.key)
		}
	}
	slices.Sort(keys)
	return keys[:min(len(keys), maxNamed)]
}

// reportOverdue logs, once for each session, that work goes on although its session ended the duration ago. It returns
// after which time to be called again; 0 if no work is to end.
func (g *group) reportOverdue() time.Duration {
	c := g.campaign
	now := c.clock.now().mono
	var late []string
	var next time.Duration
	g.mu.Lock()
	for s := range g.stopping {
		if s.overdue {
			continue
		}
		if left := s.stopped.Add(c.options.duration).Sub(now); left > 0 {
			next = cmp.Or(min(next, left), left)
		} else {
			s.overdue = true
			late = append(late, s.key)
		}
	}
	g.mu.Unlock()
	if late != nil {
		slices.Sort(late)
		c.log.error(
			"work goes on although its session ended; its keys are not given on until it returns, or are another's",
			"group", g.client.group, "keys", late[:min(len(late), maxNamed)], "count", len(late))
	}
	return next
}

// check returns what is wrong that only a restart of the process will mend.
func (g *group) check() error {
	g.mu.Lock()
	late := g.overdueLocked()
	g.mu.Unlock()
	if late == nil {
		return nil
	}
	return fmt.Errorf("group %s/%s: work goes on although its session ended: %q",
		g.campaign.lease.namespace, g.client.group, late)
}

// Groups returns the status of this process's part in each group that it takes part in, ordered by namespace, name and
// Lease.
func (m *Monitor) Groups() []GroupStatus {
	statuses := []GroupStatus{}
	for _, g := range m.allGroups() {
		statuses = append(statuses, g.status())
	}
	slices.SortFunc(statuses, func(a, b GroupStatus) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Lease, b.Lease))
	})
	return statuses
}

func (m *Monitor) allGroups() []*group {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.groups))
}

// openGroup shows g until the function that it returns is called.
func (m *Monitor) openGroup(g *group) (closeGroup func()) {
	if m == nil {
		return func() {}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.groups == nil {
		m.groups = map[*group]bool{}
	}
	m.groups[g] = true
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.groups, g)
	}
}
