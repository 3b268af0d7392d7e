package leasehold

import (
	"context"
	"errors"
	"slices"
	"strconv"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// A tableView is the table as it was last seen.
type tableView struct {
	known   bool
	exists  bool
	foreign bool // it is not the table of a group, but somebody else's Lease
	record  record
	text    string
	table   *shards.Table // nil if it cannot be read
	names   []string
	err     error // why it cannot be read
}

// selection returns the name of the Lease that the member of term me is to follow, "" for all: the assigner and the
// next in line follow all members, and the others follow the assigner. The member shares out a number of buckets.
func (v tableView) selection(me shards.Term, buckets int) string {
	t := v.table
	if t == nil || t.Buckets != buckets || !t.Lists(t.Assigner) || v.rank(me) <= 1 {
		return ""
	}
	return t.Assigner.Lease
}

// rank returns how many members come before that of term me: 0 for the assigner, 1 for the next in line. A term whose
// Lease has a later one in the table is over, and does not count. The table can be read.
func (v tableView) rank(me shards.Term) int {
	t := v.table
	if t.Assigner == me {
		return 0
	}
	latest := make(map[string]shards.Term, len(t.Rows))
	for _, r := range t.Rows {
		latest[r.Lease] = r.Term
	}
	rank := 1
	for _, r := range t.Rows {
		switch {
		case r.Term == me:
			return rank
		case r.Term != t.Assigner && r.Weight > 0 && latest[r.Lease] == r.Term:
			rank++
		}
	}
	return rank
}

// numbersOf returns the numbers of buckets, as keys.
func numbersOf(buckets int) []string {
	numbers := make([]string, buckets)
	for bucket := range numbers {
		numbers[bucket] = strconv.Itoa(bucket)
	}
	return numbers
}

// tableOf returns the table as lease has it, before it is read. A nil lease says that there is none.
func (g *group) tableOf(lease *coordinationv1.Lease) (tableView, error) {
	if lease == nil {
		return tableView{known: true}, nil
	}
	r, err := readRecord(lease)
	if err != nil {
		return tableView{}, err
	}
	text := lease.Annotations[tableAnnotation]
	foreign := lease.Labels[groupLabel] != g.client.group && text == "" && r.identity != g.client.tableHolder()
	return tableView{known: true, exists: true, foreign: foreign, record: r, text: text}, nil
}

// readTable decodes the text of v, and reads the names of its keys. The error says that these could not be asked for; v
// is of no use then.
func (g *group) readTable(ctx context.Context, v *tableView) (err error) {
	if !v.exists || v.foreign {
		return nil
	}
	v.table, v.err = shards.DecodeTable(v.text)
	switch {
	case v.err != nil:
	case v.table.NewestSeen() > v.record.version:
		v.err = errors.New("the table names versions that the API server has not reached: it is of another")
	case v.table.Buckets == len(g.numbers) && g.buckets > 0:
		v.names = g.numbers
	case v.table.Buckets > 0:
		v.names = numbersOf(v.table.Buckets)
	default:
		v.names, err = g.names(ctx, v.table.Keys)
		if err == errKeysMissing || err == nil && len(v.names) != len(v.table.Entries) {
			v.err, err = errKeysMissing, nil
		}
	}
	if v.err != nil {
		v.table, v.names = nil, nil
	}
	return err
}

// followTable follows the table until ctx ends.
func (m *membership) followTable(ctx context.Context) {
	for ctx.Err() == nil {
		following, cancel := context.WithCancel(ctx)
		m.group.mu.Lock()
		m.reread = cancel
		m.group.mu.Unlock()
		m.group.client.follow(
			following, "get table", m.group.client.group, m.group.delays.table, &tableAudience{m, following})
		cancel()
	}
}

// readTableAfresh reads the table afresh, and watches it again.
func (m *membership) readTableAfresh() {
	m.group.mu.Lock()
	reread := m.reread
	m.group.mu.Unlock()
	if reread != nil {
		reread()
	}
}

// setTable records the table as lease has it, unless what is known is newer.
func (m *membership) setTable(ctx context.Context, lease *coordinationv1.Lease) error {
	v, err := m.group.tableOf(lease)
	if err != nil || !m.newer(v) {
		return err
	}
	if v.exists && !v.foreign {
		m.group.mu.Lock()
		m.group.sawTable = true
		m.group.mu.Unlock()
	}
	if err := m.group.readTable(ctx, &v); err != nil {
		return err
	}
	m.group.mu.Lock()
	if !m.newerLocked(v) {
		m.group.mu.Unlock()
		return nil
	}
	if !v.exists {
		v.record.version = m.table.record.version // what is older than what was seen stays old
	}
	m.table = v
	inUse := map[string]bool{m.group.sets.digest: true}
	others := v.selection(m.term(), m.group.buckets) != "" // assign the keys: no plan forgets what we do not need
	m.group.mu.Unlock()
	if others {
		inUse[v.table.Keys] = true
		m.group.forgetSets(inUse)
	}
	m.news.signal()
	m.roster.tableChanged()
	return nil
}

// removeTable records that the table was deleted, when it was as last.
func (m *membership) removeTable(last *coordinationv1.Lease) {
	r, err := readRecord(last)
	if err != nil {
		return
	}
	m.group.mu.Lock()
	if r.version >= m.table.record.version {
		m.table = tableView{known: true, record: record{version: r.version}}
	}
	m.group.mu.Unlock()
	m.roster.tableChanged()
}

// lacksLocked reports whether the table lacks keys that the member knows. The caller holds the group's mu.
func (m *membership) lacksLocked() bool {
	s, t := &m.group.sets, m.table.table
	if t == nil || !t.Open || t.Buckets > 0 || t.Keys == s.digest || s.digest == "" || m.group.isLeaving() {
		return false
	}
	return slices.ContainsFunc(s.known, func(key string) bool {
		_, there := slices.BinarySearch(m.table.names, key)
		return !there
	})
}

func (m *membership) newer(v tableView) bool {
	m.group.mu.Lock()
	defer m.group.mu.Unlock()
	return m.newerLocked(v)
}

// newerLocked reports whether v says more than what is known of the table. A read that finds none may be older than the
// table that was seen; then a watch brings that again. The caller holds the group's mu.
func (m *membership) newerLocked(v tableView) bool {
	switch {
	case !m.table.known:
		return true
	case !v.exists:
		return m.table.exists
	case !m.table.exists:
		return v.record.version >= m.table.record.version
	}
	return v.record.version > m.table.record.version
}

// A tableAudience records what the table is, until ctx ends.
type tableAudience struct {
	membership *membership
	ctx        context.Context
}

func (a *tableAudience) setAll(leases []*coordinationv1.Lease, _ uint64) {
	if len(leases) > 0 {
		a.set(leases[0])
		return
	}
	a.set(nil)
}

func (a *tableAudience) update(lease *coordinationv1.Lease, deleted bool) {
	if deleted {
		a.membership.removeTable(lease)
		return
	}
	a.set(lease)
}

// set records the table. Keys that cannot be read now are tried again, because without them the table says nothing.
func (a *tableAudience) set(lease *coordinationv1.Lease) {
	g := a.membership.group
	g.retry(a.ctx, g.delays.keys, func() error { return a.membership.setTable(a.ctx, lease) })
}
