package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// What is on the Leases of a group, as docs/sharding.md describes it.
const (
	groupLabel       = "leasehold-go.github.io/group"
	tableAnnotation  = "leasehold-go.github.io/table"
	memberAnnotation = "leasehold-go.github.io/member"
	keysAnnotation   = "leasehold-go.github.io/keys"
)

// Why a key changed its owner, or its owner changed.
const (
	forBalance = "asked back for balance"
	ownerLeft  = "its owner left"
	ownerLost  = "its owner's lease expired"
	ownerGone  = "its owner's Lease was deleted"
	workOver   = "its work returned"
	keyUnknown = "no member knows it any more"
)

// A groupObserver finds out, from the Leases of a group, who owns each key. It emits a change for each key whose owner
// changed, or stopped to be one, and those of the members' own Leases.
type groupObserver struct {
	name string
	emit func(event)
	warn func(error) // a table that cannot be read

	leases map[types.NamespacedName]*coordinationv1.Lease // as they were last seen
	status map[types.NamespacedName]string                // of the members' Leases
	heard  map[types.NamespacedName]time.Time             // when they were last seen to be held
	tables map[string]*groupTable                         // by namespace
	stale  bool                                           // something was seen since the last update
}

// A groupTable is what is known of the table in a namespace.
type groupTable struct {
	version string // of the Lease that the following was read from
	*shards.Table
	names []string // nil for buckets
	last  map[string]change
}

func newGroupObserver(name string, emit func(event), warn func(error)) *groupObserver {
	return &groupObserver{
		name: name, emit: emit, warn: warn,
		leases: map[types.NamespacedName]*coordinationv1.Lease{},
		status: map[types.NamespacedName]string{},
		heard:  map[types.NamespacedName]time.Time{},
		tables: map[string]*groupTable{},
	}
}

// isMember reports whether a Lease of the group is that of a member.
func (g *groupObserver) isMember(name string) bool { return strings.HasPrefix(name, g.name+"-m-") }

// see records a Lease as it was seen.
func (g *groupObserver) see(s sight, now time.Time) {
	g.stale = g.stale || !g.isMember(s.key.Name)
	if s.lease == nil {
		delete(g.leases, s.key)
		return
	}
	g.leases[s.key] = s.lease
	if holderOf(s.lease.Spec) != "" {
		g.heard[s.key] = now
	}
}

// change records a change of one of the group's Leases, and emits it if it is a member's.
func (g *groupObserver) change(e event) {
	if !g.isMember(e.Name) {
		return
	}
	g.stale = true
	g.status[types.NamespacedName{Namespace: e.Namespace, Name: e.Name}] = e.Status
	if e.lease != nil && e.lease.Spec.AcquireTime != nil && e.Holder != "" {
		e.Since = &e.lease.Spec.AcquireTime.Time
	}
	e.Group = g.name
	g.emit(e)
}

// update emits what has changed since it was last called.
func (g *groupObserver) update(now time.Time) {
	if !g.stale {
		return
	}
	g.stale = false
	for key := range g.leases {
		if key.Name == g.name && g.tables[key.Namespace] == nil {
			g.tables[key.Namespace] = &groupTable{last: map[string]change{}}
		}
	}
	for _, namespace := range slices.Sorted(maps.Keys(g.tables)) {
		g.updateTable(namespace, now)
	}
}

func (g *groupObserver) updateTable(namespace string, now time.Time) {
	t := g.tables[namespace]
	before := t.Table
	owners := map[string]change{}
	if lease := g.leases[types.NamespacedName{Namespace: namespace, Name: g.name}]; lease != nil {
		if err := g.read(t, lease); err != nil {
			if t.version != lease.ResourceVersion {
				g.warn(err)
				t.version = lease.ResourceVersion
			}
			return
		}
		for i, e := range t.Entries {
			c := g.owner(namespace, t.Table, e, now)
			c.Group, c.Key = g.name, t.name(i)
			owners[c.Key] = c
		}
	}
	for key := range t.last {
		if _, known := owners[key]; !known {
			owners[key] = change{Namespace: namespace, Name: g.name, Group: g.name, Key: key, Status: missing,
				Cause: keyUnknown}
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(owners), compareKeys) {
		c := owners[key]
		last, seen := t.last[key]
		if seen && last.Status == c.Status && last.Holder == c.Holder {
			continue
		}
		if seen && c.Cause == "" {
			c.Cause = g.cause(namespace, before, last, now)
		}
		t.last[key] = c
		if c.Status == missing {
			delete(t.last, key)
		}
		c.Time = now.Round(0)
		g.emit(event{change: c})
	}
}

// read reads the table, if the Lease is another than before.
func (g *groupObserver) read(t *groupTable, lease *coordinationv1.Lease) error {
	if t.Table != nil && t.version == lease.ResourceVersion {
		return nil
	}
	table, err := shards.DecodeTable(lease.Annotations[tableAnnotation])
	if err != nil {
		return err
	}
	var names []string
	if table.Buckets == 0 && table.Keys != shards.Digest(nil) {
		if t.Table != nil && t.Table.Keys == table.Keys {
			names = t.names
		} else if names, err = shards.ReadPages(table.Keys, func(page int) (string, error) {
			name := fmt.Sprintf("%s-k-%s-%d", g.name, table.Keys, page)
			keys := g.leases[types.NamespacedName{Namespace: lease.Namespace, Name: name}]
			if keys == nil {
				return "", errors.New("the Lease " + name + " with the keys is missing")
			}
			return keys.Annotations[keysAnnotation], nil
		}); err != nil {
			return err
		}
		if len(names) != len(table.Entries) {
			return fmt.Errorf("it has %d entries for %d keys", len(table.Entries), len(names))
		}
	}
	t.version, t.Table, t.names = lease.ResourceVersion, table, names
	return nil
}

func (t *groupTable) name(i int) string {
	if t.names == nil {
		return strconv.Itoa(i)
	}
	return t.names[i]
}

// owner returns who owns a key by its entry.
func (g *groupObserver) owner(namespace string, t *shards.Table, e shards.Entry, now time.Time) change {
	c := change{Namespace: namespace, Name: g.name, Status: free}
	if e.Owner < 0 {
		return c
	}
	r := t.Rows[e.Owner]
	c.Status, c.Holder = held, r.Identity
	switch ended := g.ended(namespace, r, now); {
	case ended == ownerLost:
		c.Status, c.Cause = expired, ended
	case ended != "":
		c.Status, c.Holder, c.Cause = free, "", ended
	case e.Asked != 0:
		c.Status, c.Cause = moving, forBalance
	}
	return c
}

// ended returns how the term of a row ended, as far as its Lease shows it; "" if it goes on.
func (g *groupObserver) ended(namespace string, r shards.Row, now time.Time) string {
	key := types.NamespacedName{Namespace: namespace, Name: r.Lease}
	lease := g.leases[key]
	silent := now.Sub(g.heard[key]) >= time.Duration(r.Seconds)*time.Second*9/10
	isHeld := lease != nil && holderOf(lease.Spec) != ""
	switch {
	case isHeld && g.status[key] != expired && lease.Spec.AcquireTime != nil &&
		lease.Spec.AcquireTime.UnixMicro() == r.Acquired:
		return ""
	case isHeld || silent: // isHeld: in another term, or by one that does not renew it
		return ownerLost
	case lease == nil && !g.leaving(key, r):
		return ownerGone
	}
	return ownerLeft
}

// leaving reports whether a member has said that it leaves.
func (g *groupObserver) leaving(key types.NamespacedName, r shards.Row) bool {
	lease := g.leases[key]
	if lease == nil {
		return r.Weight == 0
	}
	report, err := shards.DecodeReport(lease.Annotations[memberAnnotation])
	return err == nil && report.Acquired == r.Acquired && report.Weight == 0
}

// cause returns why the last owner of a key, by the table before, does not own it any more.
func (g *groupObserver) cause(namespace string, before *shards.Table, last change, now time.Time) string {
	if last.Status != held {
		return ""
	}
	row := -1
	if before != nil {
		row = slices.IndexFunc(before.Rows, func(r shards.Row) bool { return r.Identity == last.Holder })
	}
	if row < 0 {
		return ""
	}
	r := before.Rows[row]
	if ended := g.ended(namespace, r, now); ended != "" {
		return ended
	}
	if g.leaving(types.NamespacedName{Namespace: namespace, Name: r.Lease}, r) {
		return ownerLeft
	}
	return workOver
}

// A groupHistory is the sequence of owners of the keys of a group, and of the terms of its members.
type groupHistory struct {
	types.NamespacedName
	Keys    []history
	Members []history
}

// groupHistories divides histories into those of leases and those of groups.
func groupHistories(all []history) (leases []history, groups []groupHistory) {
	byName := map[types.NamespacedName]*groupHistory{}
	var order []*groupHistory
	for _, h := range all {
		if h.Group == "" {
			leases = append(leases, h)
			continue
		}
		name := types.NamespacedName{Namespace: h.Namespace, Name: h.Group}
		g := byName[name]
		if g == nil {
			g = &groupHistory{NamespacedName: name}
			byName[name] = g
			order = append(order, g)
		}
		if h.Key == "" {
			g.Members = append(g.Members, h)
		} else {
			g.Keys = append(g.Keys, h)
		}
	}
	for _, g := range order {
		slices.SortStableFunc(g.Keys, func(a, b history) int { return compareKeys(a.Key, b.Key) })
		groups = append(groups, *g)
	}
	return leases, groups
}

// owners returns those that owned keys and the members, in the order in which they were first seen.
func (g groupHistory) owners() []string {
	first := map[string]time.Time{}
	for _, h := range slices.Concat(g.Members, g.Keys) {
		for _, s := range h.Spans {
			name := candidate(s.Holder)
			if at, seen := first[name]; s.Holder != "" && (!seen || s.From.Before(at)) {
				first[name] = s.From
			}
		}
	}
	return slices.SortedFunc(maps.Keys(first), func(a, b string) int {
		return cmp.Or(first[a].Compare(first[b]), cmp.Compare(a, b))
	})
}

// A level is how many keys there were for a time.
type level struct {
	From, To time.Time
	Keys     int
}

// levels returns how many keys an owner had over time; "" is nobody, of whom it returns how many keys had no owner.
func (g groupHistory) levels(name string) []level {
	steps := map[int64]int{} // by the time in nanoseconds
	for _, h := range g.Keys {
		for _, s := range h.Spans {
			if s.Status != missing && (name == "") == s.leaderless() && (name == "" || candidate(s.Holder) == name) {
				steps[s.From.UnixNano()]++
				steps[s.To.UnixNano()]--
			}
		}
	}
	var levels []level
	keys := 0
	for _, step := range slices.Sorted(maps.Keys(steps)) {
		at := time.Unix(0, step)
		if n := len(levels); n > 0 {
			levels[n-1].To = at
		}
		if steps[step] != 0 {
			keys += steps[step]
			levels = append(levels, level{at, at, keys})
		}
	}
	return levels
}

// at returns how many keys there were just before a time.
func at(levels []level, t time.Time) int {
	for _, l := range slices.Backward(levels) {
		if l.From.Before(t) {
			return l.Keys
		}
	}
	return 0
}

// most returns the highest level within a time.
func most(levels []level, from, to time.Time) (keys int) {
	for _, l := range levels {
		if l.From.Before(to) && (l.To.After(from) || !l.To.After(l.From) && !l.From.Before(from)) {
			keys = max(keys, l.Keys)
		}
	}
	return keys
}

// A move is that of a key to another owner.
type move struct {
	At       time.Time // when the old owner lost it, or was asked for it
	Key      string
	From, To string
	Cause    string
	Took     time.Duration // until the new owner had it
	Unowned  time.Duration // of that time
}

// moves returns the moves of all keys, in the order in which they began.
func (g groupHistory) moves() (all []move) {
	for _, h := range g.Keys {
		var open *move
		for i, s := range h.Spans {
			if s.Status == held {
				if open != nil && open.From != s.Holder {
					open.To, open.Took = s.Holder, s.From.Sub(open.At)
					if open.Cause == "" {
						open.Cause = s.Reason
					}
					all = append(all, *open)
				}
				open = &move{At: s.To, Key: h.Key, From: s.Holder}
				continue
			}
			if open == nil {
				continue
			}
			if h.Spans[i-1].Status == held {
				open.Cause = s.Reason
			}
			if s.leaderless() {
				open.Unowned += s.lasted()
			}
		}
	}
	slices.SortStableFunc(all, func(a, b move) int { return a.At.Compare(b.At) })
	return all
}

// longestGap returns the longest time for which a key had no owner.
func (g groupHistory) longestGap() (longest time.Duration) {
	for _, h := range g.Keys {
		var gap time.Duration
		for _, s := range h.Spans {
			if gap += s.lasted(); !s.leaderless() || s.Status == missing {
				gap = 0
			}
			longest = max(longest, gap)
		}
	}
	return longest
}

// facts returns the figures beside the bars, a sentence each.
func (g groupHistory) facts() []string {
	moves := g.moves()
	facts := []string{fmt.Sprintf("%s, %s seen, %s", count(len(g.Keys), "key"), count(len(g.Members), "member"),
		count(len(moves), "move"))}
	byCause := map[string][]time.Duration{}
	for _, m := range moves {
		byCause[m.Cause] = append(byCause[m.Cause], m.Took)
	}
	for _, cause := range slices.Sorted(maps.Keys(byCause)) {
		took := byCause[cause]
		slices.Sort(took)
		fact := fmt.Sprintf("%s: %s, in %s", cause, count(len(took), "move"), roundly(took[len(took)/2]))
		if len(took) > 1 {
			fact += fmt.Sprintf(" (median; %s at most)", roundly(took[len(took)-1]))
		}
		facts = append(facts, fact)
	}
	unowned := 0
	for _, l := range g.levels("") {
		unowned = max(unowned, l.Keys)
	}
	if unowned > 0 {
		facts = append(facts, fmt.Sprintf("without an owner: %s at a time at most, none for longer than %s",
			count(unowned, "key"), roundly(g.longestGap())))
	}
	for _, of := range []struct {
		what     string
		includes func(span) bool
	}{
		{"moving now", func(s span) bool { return s.Status == moving }},
		{"without an owner now", func(s span) bool { return s.leaderless() && s.Status != missing }},
	} {
		var keys []string
		var longest time.Duration
		for _, h := range g.Keys {
			if last := h.Spans[len(h.Spans)-1]; of.includes(last) {
				keys = append(keys, h.Key)
				longest = max(longest, last.lasted())
			}
		}
		if keys != nil {
			facts = append(facts, fmt.Sprintf("%s, for %s at most: %s", of.what, roundly(longest), some(keys)))
		}
	}
	return facts
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// since returns when the last term of a member began, by its own clock; zero if it is over or unknown.
func (g groupHistory) since(name string) (since time.Time) {
	for _, h := range g.Members {
		if s := h.Spans[len(h.Spans)-1]; s.Status == held && candidate(s.Holder) == name {
			since = s.Since
		}
	}
	return since
}
