package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// The annotations and the label of a group's Leases.
const (
	tableAnnotation  = "leasehold-go.github.io/table"
	memberAnnotation = "leasehold-go.github.io/member"
	keysAnnotation   = "leasehold-go.github.io/keys"
	groupLabel       = "leasehold-go.github.io/group"
)

// jobs returns what has one worker at a time: all keys of a group, or the lease itself.
func (h *harness) jobs(lease string) []string {
	for _, m := range h.members {
		if m.Lease == lease && m.Kind == sharer {
			keys := m.keys()
			for i, key := range keys {
				keys[i] = keyOf(lease, key)
			}
			return keys
		}
	}
	return []string{lease}
}

func (h *harness) isGroup(lease string) bool { return isKey(h.jobs(lease)[0]) }

// leader returns the candidate that leads, or the member that a group's table names as the one that assigns.
func (h *harness) leader(lease string) string {
	if h.isGroup(lease) {
		return h.leaseHistory.assigner(lease)
	}
	return h.store.leader(lease).Candidate
}

// edited returns the Lease that an operator edits: of a group that of a member, or, if it may be, in one case of four
// the table; "" if there is none.
func (h *harness) edited(d randomFault, table bool) string {
	lease := h.leases[d.lease]
	if !h.isGroup(lease) || table && d.pick%4 == 0 {
		return lease
	}
	members := h.leaseHistory.memberLeases(lease)
	if len(members) == 0 {
		return ""
	}
	return members[d.pick/4%len(members)].Name
}

// unlabel removes the group's label from one of its Leases.
func (h *harness) unlabel(ctx context.Context, d randomFault) error {
	lease := h.edited(d, true)
	if !h.isGroup(h.leases[d.lease]) || lease == "" {
		return nil
	}
	defer h.begin(d, "", lease, "%s: label of the group removed", lease)()
	h.patch(ctx, lease, fmt.Sprintf(`,"labels":{%q:null}}`, groupLabel))
	return nil
}

// garble makes a group's table one that cannot be read.
func (h *harness) garble(ctx context.Context, d randomFault) error {
	lease := h.leases[d.lease]
	if !h.isGroup(lease) {
		return nil
	}
	text := []string{`null`, `""`, `"rubbish"`}[d.pick%3]
	defer h.begin(d, "", lease, "%s: table set to %s", lease, text)()
	h.annotate(ctx, lease, "", text)
	return nil
}

// restore makes a group's table what it was some writes ago, once all members have reported the present one: what is
// restored before is a limit.
func (h *harness) restore(ctx context.Context, d randomFault) error {
	lease := h.leases[d.lease]
	if !h.isGroup(lease) {
		return nil
	}
	earlier, version := h.leaseHistory.restorable(lease, 1+int(20*d.y*d.y))
	if earlier == "" {
		return nil
	}
	defer h.begin(d, "", lease, "%s: an earlier table restored", lease)()
	h.annotate(ctx, lease, version, fmt.Sprintf("%q", earlier))
	return nil
}

// annotate sets the table of a group to a text in JSON; unless version is empty, only if that is the present one.
func (h *harness) annotate(ctx context.Context, lease, version, text string) {
	if version != "" {
		version = fmt.Sprintf(`,"resourceVersion":%q`, version)
	}
	h.patchAnnotations(ctx, lease, fmt.Sprintf(`,%q:%s`, tableAnnotation, text), version+"}")
}

// memberLeases returns the Leases of a group's members that show a holder, in the order of their names.
func (h *leaseHistory) memberLeases(group string) (members []*coordinationv1.Lease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, l := range h.present {
		if strings.HasPrefix(name, group+"-m-") && l.Spec.HolderIdentity != nil {
			members = append(members, l)
		}
	}
	slices.SortFunc(members, func(a, b *coordinationv1.Lease) int { return strings.Compare(a.Name, b.Name) })
	return members
}

// table returns a group's table, nil if there is none that can be read, and the version of its Lease.
func (h *leaseHistory) table(group string) (table *shards.Table, version string) {
	h.mu.Lock()
	l := h.present[group]
	h.mu.Unlock()
	if l == nil {
		return nil, ""
	}
	table, err := shards.DecodeTable(l.Annotations[tableAnnotation])
	if err != nil {
		return nil, ""
	}
	return table, l.ResourceVersion
}

// assigner returns the candidate that a group's table names as the one that assigns, "" if there is none.
func (h *leaseHistory) assigner(group string) string {
	table, _ := h.table(group)
	if table == nil {
		return ""
	}
	for _, r := range table.Rows {
		if r.Term == table.Assigner {
			name, _, _ := strings.Cut(r.Identity, "-")
			return name
		}
	}
	return ""
}

// restorable returns the table of so many writes ago, and the version of the present one if all members have reported
// that; "" otherwise.
func (h *leaseHistory) restorable(group string, writes int) (earlier, version string) {
	table, version := h.table(group)
	if table == nil {
		return "", ""
	}
	members := h.memberLeases(group)
	for _, l := range members {
		r, err := shards.DecodeReport(l.Annotations[memberAnnotation])
		if err != nil || l.Spec.AcquireTime == nil || r.Acquired != l.Spec.AcquireTime.UnixMicro() ||
			r.Epoch != table.Epoch || r.Gen != table.Gen {
			return "", ""
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var tables []string
	for _, e := range h.events[group] {
		if e.Table != "" && !e.ByHand {
			tables = append(tables, e.Table)
		}
	}
	if len(members) == 0 || len(tables) <= writes {
		return "", ""
	}
	return tables[len(tables)-1-writes], version
}

// A keyState is what a group's table says of one key.
type keyState struct {
	epoch, gen   uint64
	open         bool
	owner        string // "" for nobody
	given, asked uint64
}

// keyState returns what a table says of a key. The error says why that is not known.
func (h history) keyState(group, text, key string) (s keyState, err error) {
	table, err := shards.DecodeTable(text)
	if err != nil {
		return s, err
	}
	s = keyState{epoch: table.Epoch, gen: table.Gen, open: table.Open}
	names, err := shards.ReadPages(table.Keys, func(page int) (string, error) {
		return h.pages[fmt.Sprintf("%s-k-%s-%d", group, table.Keys, page)], nil
	})
	if err != nil {
		return s, err
	}
	if i, ok := slices.BinarySearch(names, key); ok && i < len(table.Entries) && table.Entries[i].Owner >= 0 {
		e := table.Entries[i]
		s.owner, s.given, s.asked = table.Rows[e.Owner].Identity, e.Given, e.Asked
	}
	return s, nil
}

func (s keyState) String() string {
	text := fmt.Sprintf("epoch %.6d, generation %d", s.epoch%1e6, s.gen)
	if !s.open {
		text += ", which gives nothing yet"
	}
	if s.owner == "" {
		return text + ": nobody's"
	}
	text += fmt.Sprintf(": of %s since %d", s.owner, s.given)
	if s.asked != 0 {
		text += fmt.Sprintf(", asked back by %d", s.asked)
	}
	return text
}

// keyLines adds what tables said of a key, each time that it changed.
func (h history) keyLines(lease string, add func(at time.Duration, format string, args ...any)) {
	group, key := groupOf(lease), lease[strings.Index(lease, "/")+1:]
	before := ""
	for _, e := range h.events[group] {
		text := "no table"
		if !e.Deleted {
			if s, err := h.keyState(group, e.Table, key); err != nil {
				text = err.Error()
			} else {
				text = s.String()
			}
		}
		if e.ByHand {
			text += ", by hand"
		}
		if text != before {
			add(e.At, "    table at version %d: %s", e.Version, text)
		}
		before = text
	}
}

// A groupResult is what the checks found of groups.
type groupResult struct {
	sessions int
	moves    int            // sessions that began at another member than the one before
	ends     map[string]int // of sessions, by how they ended
	tables   int            // that were written
	epochs   int
}

// countGroups counts what groups did.
func (v *result) countGroups(h history) {
	v.groups.ends = map[string]int{}
	for lease, sessions := range v.byLease {
		if !isKey(lease) {
			continue
		}
		v.groups.sessions += len(sessions)
		for i, s := range sessions {
			if i > 0 && s.Candidate != sessions[i-1].Candidate {
				v.groups.moves++
			}
			switch {
			case s.end == nil:
				v.groups.ends["killed"]++
			case s.end.Lost:
				v.groups.ends["lost"]++
			case s.end.Why == "done":
				v.groups.ends["returned"]++
			case strings.Contains(s.end.Why, "moved"):
				v.groups.ends["moved"]++
			default:
				v.groups.ends["stopped"]++
			}
		}
	}
	epochs := map[uint64]bool{}
	for _, events := range h.events {
		before := ""
		for _, e := range events {
			if e.Table == "" || e.Table == before {
				continue
			}
			before = e.Table
			v.groups.tables++
			if t, err := shards.DecodeTable(e.Table); err == nil {
				epochs[t.Epoch] = true
			}
		}
	}
	v.groups.epochs = len(epochs)
}
