package leasehold

import (
	"fmt"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// A leaseStore keeps the newest record of a Lease, out of what answers and watch events bring in any order: it is in
// the order of their resourceVersions. It makes no requests.
type leaseStore struct {
	namespace, name string
	clock           clock
	fallback        time.Duration   // the duration of a holder that recorded none
	ours            func(term) bool // reports whether the campaign wrote a term
	changed         wakeup          // there is news
	changedAny      wakeup          // there is news of the Lease of any slot; nil where there is one Lease
	contradicted    func()          // called without mu when an event contradicts what is known: only a read decides

	mu            sync.Mutex // protects following; taken before the claims' mutex
	renewer       *renewer   // of the session, which looks at what is new; nil while there is none, and after a loss
	seen          observation
	early         watch.Event // the newest event of the shared watch that came before the first read answered
	heard         uint64      // the newest version that a read or a watch brought; answers to our writes do not count
	watched       uint64      // the newest version that a watch brought
	contradiction bool        // contradicted is to be called
	updates       uint64      // how often the Lease was seen to change
	updated       time.Time   // when it last was
}

// newLeaseStore returns an empty store for the Lease of l. ours reports whether the campaign wrote a term.
func newLeaseStore(l *leaseClient, ours func(term) bool, changedAny wakeup) *leaseStore {
	return &leaseStore{
		namespace:  l.namespace,
		name:       l.name,
		clock:      l.clock,
		fallback:   l.duration,
		ours:       ours,
		changed:    newWakeup(),
		changedAny: changedAny,
	}
}

// unlock unlocks mu, and calls contradicted if it is to be called.
func (s *leaseStore) unlock() {
	contradiction := s.contradiction
	s.contradiction = false
	s.mu.Unlock()
	if contradiction {
		s.contradicted()
	}
}

// latest returns what is known now.
func (s *leaseStore) latest() observation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// unchangedSince reports whether nothing became known after o.
func (s *leaseStore) unchangedSince(o observation) bool {
	now := s.latest()
	return now.known == o.known && now.state() == o.state()
}

// setLocked makes rec the newest record. The caller holds mu.
func (s *leaseStore) setLocked(rec *record) {
	s.updates++
	s.updated = time.Now()
	s.seen = observe(&s.seen, rec, s.clock.now().mono, s.fallback, s.ours)
	s.changed.signal()
	s.changedAny.signal()
	if s.renewer != nil {
		s.renewer.stepSoon()
	}
}

// setRenewer makes r look at what is new from now on; nil makes nobody.
func (s *leaseStore) setRenewer(r *renewer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renewer = r
}

// keeps reports whether the campaign's session keeps t.
func (s *leaseStore) keeps(t term) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.renewer != nil && s.renewer.session.term == t
}

// setAfterGapLocked makes rec the newest record. There may be states of the Lease before it that the store has not
// seen. The caller holds mu.
func (s *leaseStore) setAfterGapLocked(rec *record) {
	if s.seen.exists() && (rec.uid != s.seen.uid || rec.version < s.seen.version) {
		// The Lease, or the state in which it was seen, does not exist any more. The holder at the end, perhaps
		// one that was not seen here, may have renewed until just now.
		s.missHolderLocked(s.seen.uid)
		if rec.uid == s.seen.uid {
			s.seen.missedHolderUID = "" // its deletion would say nothing of who held it in the lost state
		}
	}
	s.setLocked(rec)
}

// missHolderLocked waits out a holder that was not seen, of the Lease with uid. The caller holds mu.
func (s *leaseStore) missHolderLocked(uid types.UID) {
	if uid != s.seen.missedHolderUID {
		// The deletion of the Lease with uid will say nothing of who held an earlier one.
		s.seen.deletedHolderUntil = s.seen.clearAt()
	}
	until := s.clock.now().mono.Add(max(s.seen.wait, s.fallback))
	s.seen.missedHolderUntil, s.seen.missedHolderUID = later(s.seen.missedHolderUntil, until), uid
}

// setDeletedLocked records that the Lease was deleted when it was as last, so that no holder went unseen. The
// caller holds mu.
func (s *leaseStore) setDeletedLocked(last *record) {
	if last.uid == s.seen.missedHolderUID {
		s.seen.missedHolderUntil, s.seen.missedHolderUID = time.Time{}, ""
	}
	s.setAfterGapLocked(last)
	s.setLocked(&record{version: last.version})
}

// addAnswer records rec, what the Lease is after a write of ours that was sent when before was known.
func (s *leaseStore) addAnswer(rec record, before observation) {
	s.mu.Lock()
	defer s.unlock()
	s.addAnswerLocked(&rec, &before)
}

// addAnswerLocked records rec, the answer to a request of ours that was sent when before was known. The caller
// holds mu.
func (s *leaseStore) addAnswerLocked(rec *record, before *observation) {
	now := &s.seen
	switch {
	case rec.version > now.version:
		s.setAfterGapLocked(rec)
	case before.version != now.version || before.exists() != now.exists():
		// Newer news came while the answer was under way.
	case !now.known:
		s.setLocked(rec)
	case !rec.exists() && now.exists():
		s.setAfterGapLocked(&record{version: now.version}) // so that events of the Lease that was deleted are old news
	case rec.exists() && !now.exists() && rec.version == now.version:
		// The Lease was not deleted, and nothing happened to it.
		if now.missedHolderUID == rec.uid {
			s.seen.missedHolderUntil, s.seen.missedHolderUID = time.Time{}, ""
		}
		s.setLocked(rec)
	case rec.exists() && rec.version < now.version:
		s.heard, s.watched = rec.version, 0
		s.setAfterGapLocked(rec) // the server's store was set back, as by restoring a backup
	}
	s.addEarlyLocked()
}

// addEarlyLocked records the event that came before the first read answered. The caller holds mu.
func (s *leaseStore) addEarlyLocked() {
	if event := s.early; event.Type != "" && s.seen.known {
		s.early = watch.Event{}
		if rec, err := readRecord(event.Object.(*coordinationv1.Lease)); err == nil {
			s.addEventLocked(event.Type, &rec, true)
		}
	}
}

// addDeletion records that we deleted the Lease when it was as last.
func (s *leaseStore) addDeletion(last record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen.state() == last.state() {
		s.setDeletedLocked(&last)
	}
}

// addEvent records an event of the Lease's own watch, or of the shared one. After an error the reflector ends its own
// watch; the shared watch goes on, and makes the reflector read the Lease.
func (s *leaseStore) addEvent(event watch.Event, shared bool) error {
	if event.Type == watch.Error {
		return fmt.Errorf("watch lease %s/%s: %w", s.namespace, s.name, watchError(event))
	}
	lease, _ := event.Object.(*coordinationv1.Lease)
	if lease == nil || lease.Name != s.name {
		return nil // nothing that was asked for
	}
	rec, err := readRecord(lease)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.unlock()
	s.heard, s.watched = max(s.heard, rec.version), max(s.watched, rec.version)
	if !s.seen.known {
		s.early = event // it may be of long ago: what is known begins with a read of our own
		return nil
	}
	s.addEventLocked(event.Type, &rec, shared)
	return nil
}

// addEventLocked records an event that brought rec. The caller holds mu.
func (s *leaseStore) addEventLocked(kind watch.EventType, rec *record, shared bool) {
	switch absent := !s.seen.exists() && kind != watch.Deleted; {
	// The Lease seems not to have been deleted; or the event may be older than the read that found no Lease.
	case absent && rec.version == s.seen.version,
		absent && shared && s.seen.version == 0 && !s.ours(rec.term()):
		s.contradiction = true
	case rec.version <= s.seen.version:
		// Old news.
	case kind == watch.Deleted:
		s.setDeletedLocked(rec)
	case kind == watch.Added, kind == watch.Modified:
		s.setAfterGapLocked(rec) // of a Lease that was deleted before the watch was opened
	}
}

// resume makes what was just read the news that came after known, if there was any, which another store of this Lease
// saw, and returns what is known then. The read was sent when before was known.
func (s *leaseStore) resume(known, before observation) observation {
	s.mu.Lock()
	defer s.unlock()
	if read := s.seen; known.known {
		s.seen = known
		s.addAnswerLocked(&read.record, &before)
		if s.seen.state() == read.state() {
			s.seen.wait = max(s.seen.wait, read.wait)
		}
	}
	return s.seen
}

// watchBrought reports whether a watch brought version, or a later one.
func (s *leaseStore) watchBrought(version uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watched >= version
}

// addRead records rec, the answer to a read that was sent when before was known.
func (s *leaseStore) addRead(rec record, before observation) {
	s.mu.Lock()
	defer s.unlock()
	s.heard = max(s.heard, rec.version)
	s.addAnswerLocked(&rec, &before)
}

// resetTo records rec, and forgets what was known before. Only the time for which others may still lead is kept.
func (s *leaseStore) resetTo(rec record) {
	s.mu.Lock()
	defer s.unlock()
	s.missHolderLocked("")
	s.seen.known, s.seen.record = false, record{}
	s.heard, s.watched = rec.version, 0
	s.setLocked(&rec)
}

// heardVersion returns the newest version that a read or a watch brought, and the uid of the Lease. A watch need not
// bring what was read before it was opened.
func (s *leaseStore) heardVersion() (heard uint64, uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heard, s.seen.uid
}

// watchMissed reports whether a read found something that the watch has not brought, since heardVersion returned heard
// and uid.
func (s *leaseStore) watchMissed(heard uint64, uid types.UID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.heard != heard {
		return s.watched < s.heard
	}
	return uid != "" && !s.seen.exists() // a deletion has no version to be heard, unless a watch brings it
}

// describe adds to status what is known of the Lease.
func (s *leaseStore) describe(status *LeaseStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	status.UpdateTime = s.updated
	status.Updates += s.updates
	if s.seen.exists() {
		status.ResourceVersion = s.seen.resourceVersion()
	}
	if s.seen.held() {
		status.Holder = &HolderStatus{
			Identity:    s.seen.identity,
			AcquireTime: inJSON(s.seen.acquired),
			RenewTime:   inJSON(s.seen.renewed),
			Transitions: s.seen.transitions,
			ExpiryTime:  wallTimeAt(s.clock, s.seen.expiresAt()),
			Address:     s.seen.notes().Address,
		}
	}
}

// inJSON returns t, or the zero time if JSON cannot have it: one that somebody wrote into a Lease by hand.
func inJSON(t time.Time) time.Time {
	if _, err := t.MarshalJSON(); err != nil {
		return time.Time{}
	}
	return t
}
