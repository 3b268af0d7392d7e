package leasehold

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// A memberView is what is known of a Lease of the group.
type memberView struct {
	seen    observation
	text    string
	report  shards.Report // the zero Report if there is none that can be read
	garbled bool          // there is one that cannot be read
	live    time.Time     // since when its present term is known

	// It was without the group's label: neither lists nor watches show what becomes of it until that is back.
	unlabelled bool
}

// followMembers follows the members, all or the assigner alone, until ctx ends.
func (a *assigner) followMembers(ctx context.Context) {
	for ctx.Err() == nil {
		selected := a.selection()
		following, cancel := context.WithCancel(ctx)
		a.selectLease(selected, cancel)
		if a.selection() == selected {
			a.group.client.follow(following, "list", selected, a.group.delays.members, a)
		}
		cancel()
	}
}

// tableChanged wakes run to decide again, and follows the members that the new table makes it necessary to follow.
func (a *assigner) tableChanged() {
	a.wake()
	selected := a.selection()
	a.mu.Lock()
	defer a.mu.Unlock()
	if selected != a.selected && a.reselect != nil {
		a.reselect()
	}
}

// selection returns the name of the Lease to follow, "" for all: the assigner and the next in line follow all members,
// and the others follow the assigner.
func (a *assigner) selection() string {
	a.group.mu.Lock()
	defer a.group.mu.Unlock()
	return a.selectionLocked()
}

// selectionLocked returns the name of the Lease that is to be followed, "" for all. The caller holds the group's mu.
func (a *assigner) selectionLocked() string {
	t := a.membership.table.table
	if t == nil || t.Buckets != a.group.buckets || !t.Lists(t.Assigner) || a.rankLocked() <= 1 {
		return ""
	}
	return t.Assigner.Lease
}

// selectLease records which Lease is followed from now on, "" for all, and what ends that. What was known of Leases
// that were not followed meanwhile is old: by that an assigner that has just begun would be taken for a silent one.
func (a *assigner) selectLease(selected string, reselect context.CancelFunc) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if selected != "" && selected != a.selected {
		clear(a.members)
		a.unread, a.surveyed = true, 0
	}
	a.selected, a.reselect, a.listed = selected, reselect, 0
}

// rankLocked returns how many members come before this one: 0 for the assigner, 1 for the next in line. A term whose
// Lease has a later one in the table is over, and does not count. The caller holds the group's mu.
func (a *assigner) rankLocked() int {
	t, me := a.membership.table.table, a.membership.term()
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

func (a *assigner) replace(leases []*coordinationv1.Lease, version uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.selected == "" {
		a.keepLocked(leases, version)
	} else if len(leases) == 0 && a.members[a.selected] != nil {
		a.forgetLocked(a.selected)
	}
	for _, l := range leases {
		a.setLocked(l)
	}
	a.dirty, a.unread = true, false
	a.news.signal()
}

func (a *assigner) update(lease *coordinationv1.Lease, deleted bool) {
	r, err := readRecord(lease)
	if err != nil {
		return // that no API server sends
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.members[lease.Name]
	switch {
	case known == nil && r.version <= a.listed:
		return // of a Lease that a later list did not have
	case !deleted:
		a.setLocked(lease)
	case known != nil && known.seen.version <= r.version:
		a.forgetLocked(lease.Name)
	}
	if a.selected == "" && a.listed > 0 {
		a.listed = max(a.listed, r.version) // events come in order
	}
	a.news.signal()
}

// keepLocked forgets the Leases that are not among those that were listed as of version, which has all that have the
// group's label. Of a held Lease without it, it is remembered for how long that was silent. The caller holds mu.
func (a *assigner) keepLocked(listed []*coordinationv1.Lease, version uint64) {
	present := map[string]bool{}
	for _, l := range listed {
		present[l.Name] = true
	}
	for name, v := range a.members {
		if !present[name] && v.seen.version <= version && !(v.unlabelled && v.seen.held()) {
			a.forgetLocked(name)
		}
	}
	a.listed, a.surveyed = max(a.listed, version), max(a.surveyed, version)
}

// forgetLocked forgets a Lease that is gone. The caller holds mu.
func (a *assigner) forgetLocked(name string) {
	a.goneLocked(a.members[name])
	delete(a.members, name)
	a.dirty = true
}

// forgetUnlabelled forgets a Lease without the group's label, because it is not as it was any more.
func (a *assigner) forgetUnlabelled(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if v := a.members[name]; v != nil && v.unlabelled && a.selected == "" {
		a.forgetLocked(name)
	}
}

// goneLocked records that the Lease of v does not exist any more. Its holder may not have heard. The caller holds mu.
func (a *assigner) goneLocked(v *memberView) {
	if v.seen.held() {
		duration := max(v.seen.wait, a.group.campaign.options.duration)
		a.ghosts = later(a.ghosts, a.clock.now().mono.Add(duration))
	}
}

// setLocked records what a Lease of the group is. The caller holds mu.
func (a *assigner) setLocked(lease *coordinationv1.Lease) {
	if !a.group.isMember(lease.Name) && !a.group.isPage(lease.Name) {
		return
	}
	r, err := readRecord(lease)
	if err != nil {
		return // that no API server sends
	}
	v := a.members[lease.Name]
	if v == nil {
		v = &memberView{}
		a.members[lease.Name] = v
	}
	if v.seen.known && r.version <= v.seen.version {
		return
	}
	if v.seen.known && v.seen.uid != r.uid {
		a.goneLocked(v)
	}
	v.unlabelled = lease.Labels[groupLabel] != a.group.client.group
	now := a.clock.now().mono
	if text := lease.Annotations[memberAnnotation]; text != v.text || v.seen.term() != r.term() {
		a.dirty = true
		v.text = text
		var err error
		v.report, err = shards.DecodeReport(text)
		v.garbled = text != "" && err != nil
		if v.seen.term() != r.term() {
			v.live = now
		}
	}
	v.seen = observe(&v.seen, &r, now, a.group.campaign.options.duration, func(term) bool { return false })
}

// isMember and isPage report what a Lease of the group is by its name.
func (g *group) isMember(name string) bool { return strings.HasPrefix(name, g.client.group+"-m-") }

func (g *group) isPage(name string) bool { return strings.HasPrefix(name, g.client.group+"-k-") }

// termOf returns the term that a member's Lease shows, and whether it shows one.
func termOf(name string, r record) (shards.Term, bool) {
	return shards.Term{Lease: name, UID: string(r.uid), Acquired: r.acquired.UnixMicro()}, r.held()
}

// ended reports whether a term is certainly over. If it is not, at says when that will be known unless something
// happens; zero if only news can tell.
func (a *assigner) ended(v view, r shards.Row) (ended bool, at time.Time) {
	if r.Term == v.me.Term {
		return false, time.Time{}
	}
	if m, ok := v.members[r.Lease]; ok && string(m.seen.uid) == r.UID {
		delete(a.missing, r.Term)
		if term, held := termOf(r.Lease, m.seen.record); held && term == r.Term {
			return false, time.Time{}
		}
		return m.seen.version > r.Seen, time.Time{}
	}
	if v.listed < r.Seen || v.listed == 0 {
		return false, time.Time{}
	}
	// Its Lease was deleted. It may not have heard, and trust it for as long as it may trust any.
	since, ok := a.missing[r.Term]
	if !ok {
		if !slices.Contains(a.unsure, r.Term) {
			a.unsure = append(a.unsure, r.Term)
		}
		return false, time.Time{}
	}
	at = since.Add(max(a.group.campaign.options.duration, time.Duration(r.Seconds)*time.Second))
	return !v.now.Before(at), at
}

// readUnsure reads the Leases that seem to be missing: a Lease may have lost its label, or a watch may have left it
// out.
func (a *assigner) readUnsure(ctx context.Context) error {
	unsure := a.unsure
	a.unsure = nil
	// So that a Lease that cannot be read does not keep the others from being read.
	rand.Shuffle(len(unsure), func(i, j int) { unsure[i], unsure[j] = unsure[j], unsure[i] })
	for _, term := range unsure {
		lease, err := a.group.client.get(ctx, "get member", term.Lease)
		if err != nil {
			return err
		}
		a.mu.Lock()
		if lease != nil && string(lease.UID) == term.UID && a.group.isMember(term.Lease) {
			a.setLocked(lease)
		} else {
			a.missing[term] = a.clock.now().mono
		}
		a.dirty = true
		a.mu.Unlock()
	}
	return nil
}

// survey lists the members again, because what is known of them may lack one that a watch left out. A server whose
// answers lag behind the table is asked again after a while.
func (a *assigner) survey(ctx context.Context, v view) (time.Duration, error) {
	interval := a.group.campaign.options.renewInterval
	if again := a.surveyAt.Add(interval).Sub(v.now); again > 0 && a.surveying == v.table.record.version {
		return again, nil
	}
	if err := a.listMembers(ctx); err != nil {
		return 0, err
	}
	a.surveying, a.surveyAt = v.table.record.version, v.now
	return 0, nil
}

// listMembers reads all Leases that have the group's label.
func (a *assigner) listMembers(ctx context.Context) error {
	return a.recordList(a.group.client.list(ctx))
}

// listAll reads all Leases of the group, also members' that somebody has taken the label from: those are not watched.
func (a *assigner) listAll(ctx context.Context) error {
	return a.recordList(a.group.client.listUnlabelled(ctx))
}

// recordList records that the Leases of the group are those that were listed as of version.
func (a *assigner) recordList(leases []*coordinationv1.Lease, version uint64, err error) error {
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keepLocked(leases, version)
	for _, l := range leases {
		a.setLocked(l)
	}
	a.dirty = true
	return nil
}
