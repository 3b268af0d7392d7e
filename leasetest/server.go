package leasetest

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// firstResourceVersion is where the counter starts: not at 0 or 1, which a test could mistake for something else.
const firstResourceVersion = 1000

// historyLimit is how many changes a watch can go back before it is told 410 Gone.
const historyLimit = 1024

// Server is an in-memory Lease API. It is safe for concurrent use. Create it with [NewServer].
type Server struct {
	mu        sync.Mutex
	rv        uint64 // of the newest change
	uids      uint64 // given out so far
	leases    map[types.NamespacedName]*record
	history   []event // the newest changes, oldest first
	compacted uint64  // changes up to this resourceVersion are gone from history
	watches   []*watcher
	clients   map[string]*Client
	onCommit  []func(Change)
}

// record is a stored lease. It is never changed, only replaced.
type record struct {
	lease  *coordinationv1.Lease
	owners owners // lease.ManagedFields, decoded
	valid  bool   // its metadata passed validation, which a hand (Put, Edit) can get around
}

// event is one change as the watches see it.
type event struct {
	typ  watch.EventType
	old  *coordinationv1.Lease // before; nil when added
	new  *coordinationv1.Lease // after; when deleted, the last state with the resourceVersion of its deletion
	rv   uint64
	time time.Time
}

// Change is one committed write.
type Change struct {
	// Type is watch.Added, watch.Modified or watch.Deleted.
	Type watch.EventType
	// Old is the lease before, nil when it was added. It must not be changed.
	Old *coordinationv1.Lease
	// New is the lease after; when it was deleted, its last state with the resourceVersion of the deletion. It must
	// not be changed.
	New *coordinationv1.Lease
	// Client names the client that wrote, and is empty for the server's own methods.
	Client string
	Time   time.Time
}

// NewServer returns an empty server.
func NewServer() *Server {
	return &Server{
		rv:        firstResourceVersion,
		compacted: firstResourceVersion,
		leases:    map[types.NamespacedName]*record{},
		clients:   map[string]*Client{},
	}
}

// Client returns the client of that name, the same one at each call.
func (s *Server) Client(name string) *Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.clients[name]
	if !ok {
		c = &Client{server: s, name: name}
		s.clients[name] = c
	}
	return c
}

// OnCommit sets a function that is called for every committed write, in the order of their resourceVersions and before
// any reader or watch sees the write: an oracle can check each step there. f is called with the server locked and must
// not call it.
func (s *Server) OnCommit(f func(Change)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onCommit = append(s.onCommit, f)
}

// ResourceVersion returns the resourceVersion of the newest change.
func (s *Server) ResourceVersion() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return formatRV(s.rv)
}

// Lease returns a copy of the lease as it is now, nil when there is none.
func (s *Server) Lease(namespace, name string) *coordinationv1.Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.leases[types.NamespacedName{Namespace: namespace, Name: name}]; r != nil {
		return r.lease.DeepCopy()
	}
	return nil
}

// hand is the field manager of Put and Edit.
const hand = "kubectl-edit"

// Put stores the lease whatever it contains, creating or replacing it, unchecked and unconditionally. The server
// gives it a resourceVersion, and a uid and creation time unless it has them. It returns the lease as stored.
func (s *Server) Put(lease *coordinationv1.Lease) *coordinationv1.Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.put(lease.DeepCopy()).DeepCopy()
}

// Edit changes the lease as an operator does, unchecked and unconditionally, and returns it as stored: nil, without
// calling f, when there is none. f is called with the server locked and must not call it.
func (s *Server) Edit(namespace, name string, f func(*coordinationv1.Lease)) *coordinationv1.Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.leases[types.NamespacedName{Namespace: namespace, Name: name}]
	if r == nil {
		return nil
	}
	lease := r.lease.DeepCopy()
	f(lease)
	lease.Namespace, lease.Name = namespace, name
	return s.put(lease).DeepCopy()
}

// Delete removes the lease, finalizers or not, and reports whether there was one.
func (s *Server) Delete(namespace, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := types.NamespacedName{Namespace: namespace, Name: name}
	r := s.leases[key]
	if r != nil {
		s.remove(key, r.lease, "")
	}
	return r != nil
}

// Compact forgets the history: a watch from before this moment is told 410 Gone, as after etcd's compaction and a
// restart of the API server.
func (s *Server) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history = nil
	s.compacted = s.rv
}

// Bookmark sends a bookmark with the newest resourceVersion to every watch that allows bookmarks. A real server does
// so about once a minute.
func (s *Server) Bookmark() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.watches {
		if w.bookmarks {
			w.push(bookmark(s.rv), time.Now())
		}
	}
}

// CloseWatches closes the watches of all clients, see [Client.CloseWatches].
func (s *Server) CloseWatches(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeWatches("", err)
}

func (s *Server) put(lease *coordinationv1.Lease) *coordinationv1.Lease {
	key := types.NamespacedName{Namespace: lease.Namespace, Name: lease.Name}
	normalize(lease)
	live := &coordinationv1.Lease{}
	if r := s.leases[key]; r != nil {
		live = r.lease
	}
	if lease.UID == "" {
		lease.UID = cmp.Or(live.UID, s.newUID())
	}
	if lease.CreationTimestamp.IsZero() {
		lease.CreationTimestamp = live.CreationTimestamp
	}
	if lease.CreationTimestamp.IsZero() {
		lease.CreationTimestamp = now()
	}
	return s.store(key, own(live, lease, hand), owners{}, false, "")
}

// store commits the lease, whose resourceVersion it sets, and returns it.
func (s *Server) store(
	key types.NamespacedName, lease *coordinationv1.Lease, o owners, valid bool, client string,
) *coordinationv1.Lease {
	if o.entries == nil {
		o = decodeOwners(lease.ManagedFields)
	}
	s.rv++
	lease.ResourceVersion = formatRV(s.rv)
	ev := event{typ: watch.Added, new: lease}
	if r := s.leases[key]; r != nil {
		ev.typ, ev.old = watch.Modified, r.lease
	}
	s.leases[key] = &record{lease: lease, owners: o, valid: valid}
	s.publish(ev, client)
	return lease
}

func (s *Server) remove(key types.NamespacedName, last *coordinationv1.Lease, client string) {
	old := s.leases[key].lease
	delete(s.leases, key)
	s.rv++
	last = last.DeepCopy()
	last.ResourceVersion = formatRV(s.rv)
	s.publish(event{typ: watch.Deleted, old: old, new: last}, client)
}

func (s *Server) publish(ev event, client string) {
	ev.rv, ev.time = s.rv, time.Now()
	for _, f := range s.onCommit {
		f(Change{Type: ev.typ, Old: ev.old, New: ev.new, Client: client, Time: ev.time})
	}
	if len(s.history) == historyLimit {
		// Half at once, so that most changes move nothing.
		s.compacted = s.history[historyLimit/2-1].rv
		s.history = slices.Clone(s.history[historyLimit/2:])
	}
	s.history = append(s.history, ev)
	for _, w := range s.watches {
		w.offer(ev)
	}
}

func (s *Server) newUID() types.UID {
	// By a counter, so that a seeded simulation sees the same uids in each run.
	s.uids++
	return types.UID(fmt.Sprintf("1ea5e000-0000-4000-8000-%012x", s.uids))
}

// now is the time as the API shows it, in whole seconds.
func now() metav1.Time { return metav1.Now().Rfc3339Copy() }

func formatRV(rv uint64) string { return strconv.FormatUint(rv, 10) }

// normalize gives the lease the form it would have after travelling to the server: microseconds, and nothing empty
// where there could be nothing.
func normalize(l *coordinationv1.Lease) {
	l.TypeMeta = metav1.TypeMeta{}
	for _, t := range []*metav1.MicroTime{l.Spec.AcquireTime, l.Spec.RenewTime} {
		if t != nil && !t.IsZero() {
			t.Time = t.Truncate(time.Microsecond).Local()
		}
	}
	if !l.CreationTimestamp.IsZero() {
		l.CreationTimestamp = l.CreationTimestamp.Rfc3339Copy()
	}
	if len(l.Labels) == 0 {
		l.Labels = nil
	}
	if len(l.Annotations) == 0 {
		l.Annotations = nil
	}
	if len(l.OwnerReferences) == 0 {
		l.OwnerReferences = nil
	}
	if len(l.Finalizers) == 0 {
		l.Finalizers = nil
	}
	if len(l.ManagedFields) == 0 {
		l.ManagedFields = nil
	}
}
