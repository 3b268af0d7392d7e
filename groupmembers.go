package leasehold

import (
	"context"
	"errors"
	"strings"
	"sync"
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

// A roster is what is known of the Leases of a group, out of lists and events: of all that have the group's label, or
// of the assigner's alone.
type roster struct {
	group     *group
	clock     clock
	selection func() string // the name of the Lease that is to be followed now; "" for all
	news      wakeup        // there may be something to decide

	mu                 sync.Mutex             // protects following
	members            map[string]*memberView // by the name of the Lease
	listed             uint64                 // the version as of which all are known; 0 while only some are followed
	surveyed           uint64                 // the version of the newest list of all; events may have left one out
	deleted            uint64                 // the version as of which a Lease was last seen to be gone
	selected           string                 // the Lease that is followed; "" for all
	unread             bool                   // that Lease was not read yet since it was selected
	reselect           context.CancelFunc     // ends the reading and watching under way, to begin with a new selection
	dirty              bool                   // something changed that matters for the table
	deletedHolderUntil time.Time              // until when holders may live whose Leases were seen to be deleted

	// Owned by the goroutine of assigner.run:
	surveyedFor uint64    // the version of the table that the members were listed for last
	surveyedAt  time.Time // when that list was asked for
}

func newRoster(g *group, selection func() string) *roster {
	return &roster{
		group: g, clock: g.campaign.clock, selection: selection, news: newWakeup(), members: map[string]*memberView{},
	}
}

// wake makes the assigner decide again.
func (r *roster) wake() {
	r.setDirty()
	r.news.signal()
}

func (r *roster) setDirty() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dirty = true
}

func (r *roster) isDirty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dirty
}

// takeDirty reports whether something has changed since it was called last.
func (r *roster) takeDirty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	dirty := r.dirty
	r.dirty = false
	return dirty
}

// show puts into v what is known, where a Lease is to be followed alone, or all if selection is "".
func (r *roster) show(v *view, selection string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v.members = make(map[string]memberView, len(r.members))
	for name, member := range r.members {
		v.members[name] = *member
	}
	v.listed, v.surveyed, v.deletedHolderUntil = r.listed, r.surveyed, r.deletedHolderUntil
	v.unread = selection != "" && (r.unread || r.selected != selection)
}

// follow follows the members, all or the assigner alone, until ctx ends.
func (r *roster) follow(ctx context.Context) {
	for ctx.Err() == nil {
		selected := r.selection()
		following, cancel := context.WithCancel(ctx)
		r.selectLease(selected, cancel)
		if r.selection() == selected {
			r.group.client.follow(following, "list", selected, r.group.delays.members, r)
		}
		cancel()
	}
}

// tableChanged makes the assigner decide again, and follows the members that the new table makes it necessary to
// follow.
func (r *roster) tableChanged() {
	r.wake()
	selected := r.selection()
	r.mu.Lock()
	defer r.mu.Unlock()
	if selected != r.selected && r.reselect != nil {
		r.reselect()
	}
}

// readAfresh reads the Leases afresh, and watches them again.
func (r *roster) readAfresh() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reselect != nil {
		r.reselect()
	}
}

// selectLease records which Lease is followed from now on, "" for all, and what ends that. What was known of Leases
// that were not followed meanwhile is old: by that an assigner that has just begun would be taken for a silent one.
func (r *roster) selectLease(selected string, reselect context.CancelFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if selected != "" && selected != r.selected {
		clear(r.members)
		r.unread, r.surveyed = true, 0
	}
	r.selected, r.reselect, r.listed = selected, reselect, 0
}

func (r *roster) setAll(leases []*coordinationv1.Lease, version uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.selected == "" {
		r.keepLocked(leases, version)
	} else if len(leases) == 0 && r.members[r.selected] != nil {
		r.forgetLocked(r.selected)
	}
	for _, l := range leases {
		r.recordLocked(l)
	}
	r.dirty, r.unread = true, false
	r.news.signal()
}

func (r *roster) update(lease *coordinationv1.Lease, deleted bool) {
	record, err := readRecord(lease)
	if err != nil {
		return // that no API server sends
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.members[lease.Name]
	switch {
	case known == nil && record.version <= r.listed:
		return // of a Lease that a later list did not have
	case !deleted:
		r.recordLocked(lease)
	case known != nil && known.seen.version <= record.version:
		r.forgetLocked(lease.Name)
		r.deleted = max(r.deleted, record.version)
	}
	if r.selected == "" && r.listed > 0 {
		r.listed = max(r.listed, record.version) // events come in order
	}
	r.news.signal()
}

// record records what a Lease of the group is.
func (r *roster) record(lease *coordinationv1.Lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.recordLocked(lease)
}

// keepLocked forgets the Leases that are not among those that were listed as of version, which has all that have the
// group's label. Of a held Lease without it, it is remembered for how long that was silent. The caller holds mu.
func (r *roster) keepLocked(listed []*coordinationv1.Lease, version uint64) {
	present := map[string]bool{}
	for _, l := range listed {
		present[l.Name] = true
	}
	for name, v := range r.members {
		if !present[name] && v.seen.version <= version && !(v.unlabelled && v.seen.held()) {
			r.forgetLocked(name)
			r.deleted = max(r.deleted, version)
		}
	}
	r.listed, r.surveyed = max(r.listed, version), max(r.surveyed, version)
}

// forgetLocked forgets a Lease that is gone. The caller holds mu.
func (r *roster) forgetLocked(name string) {
	r.deletedLocked(r.members[name])
	delete(r.members, name)
	r.dirty = true
}

// forgetUnlabelled forgets a Lease without the group's label, because it is not as it was any more.
func (r *roster) forgetUnlabelled(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v := r.members[name]; v != nil && v.unlabelled && r.selected == "" {
		r.forgetLocked(name)
	}
}

// deletedLocked records that the Lease of v does not exist any more. Its holder may not have heard. The caller holds
// mu.
func (r *roster) deletedLocked(v *memberView) {
	if v.seen.held() {
		duration := max(v.seen.wait, r.group.campaign.options.duration)
		r.deletedHolderUntil = later(r.deletedHolderUntil, r.clock.now().mono.Add(duration))
	}
}

// recordLocked records what a Lease of the group is. The caller holds mu.
func (r *roster) recordLocked(lease *coordinationv1.Lease) {
	if !r.group.isMember(lease.Name) && !r.group.isPage(lease.Name) {
		return
	}
	record, err := readRecord(lease)
	if err != nil {
		return // that no API server sends
	}
	v := r.members[lease.Name]
	if v == nil {
		v = &memberView{}
		r.members[lease.Name] = v
	}
	if v.seen.known && record.version <= v.seen.version {
		return
	}
	if v.seen.known && v.seen.uid != record.uid {
		r.deletedLocked(v)
	}
	v.unlabelled = lease.Labels[groupLabel] != r.group.client.group
	now := r.clock.now().mono
	if text := lease.Annotations[memberAnnotation]; text != v.text || v.seen.term() != record.term() {
		r.dirty = true
		v.text = text
		var err error
		v.report, err = shards.DecodeReport(text)
		v.garbled = text != "" && err != nil
		if v.seen.term() != record.term() {
			v.live = now
		}
	}
	v.seen = observe(&v.seen, &record, now, r.group.campaign.options.duration, func(term) bool { return false })
}

// isMember and isPage report what a Lease of the group is by its name.
func (g *group) isMember(name string) bool { return strings.HasPrefix(name, g.client.group+"-m-") }

func (g *group) isPage(name string) bool { return strings.HasPrefix(name, g.client.group+"-k-") }

// termOf returns the term that a member's Lease shows, and whether it shows one.
func termOf(name string, r record) (shards.Term, bool) {
	return shards.Term{Lease: name, UID: string(r.uid), Acquired: r.acquired.UnixMicro()}, r.held()
}

// survey lists the members again, because what is known of them may lack one that a watch left out. A server whose
// answers lag behind the table is asked again after a while.
func (r *roster) survey(ctx context.Context, v view) (time.Duration, error) {
	interval := r.group.campaign.options.renewInterval
	if again := r.surveyedAt.Add(interval).Sub(v.now); again > 0 && r.surveyedFor == v.table.record.version {
		return again, nil
	}
	if err := r.listMembers(ctx); err != nil {
		return 0, err
	}
	r.surveyedFor, r.surveyedAt = v.table.record.version, v.now
	return 0, nil
}

// listMembers reads all Leases that have the group's label.
func (r *roster) listMembers(ctx context.Context) error {
	return r.recordList(r.group.client.list(ctx))
}

// listAll reads all Leases of the group, as of version or later, also members' that somebody has taken the label from:
// those are not watched.
func (r *roster) listAll(ctx context.Context, version uint64) error {
	leases, listed, err := r.group.client.listUnlabelled(ctx)
	if err == nil && listed < version {
		err = errOldList
	}
	return r.recordList(leases, listed, err)
}

// errOldList says that a list is of no use: it may lack Leases, or have some that were seen to be gone.
var errOldList = errors.New("the list is older than what is known")

// recordList records that the Leases of the group are those that were listed as of version.
func (r *roster) recordList(leases []*coordinationv1.Lease, version uint64, err error) error {
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range leases {
		if l.Name != r.group.client.group && r.members[l.Name] == nil && version < r.deleted {
			return errOldList // no event would say again that it is gone
		}
	}
	r.keepLocked(leases, version)
	for _, l := range leases {
		r.recordLocked(l)
	}
	r.dirty = true
	return nil
}
