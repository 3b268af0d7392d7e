package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/leasehold-go/leasehold/testbed/internal/boottime"
)

// An event is one state of a Lease in etcd. The events of a Lease are all its states, in order.
type event struct {
	At      time.Duration // when the harness received it, which is not before it happened
	Version uint64
	UID     string
	Deleted bool `json:",omitempty"`
	ByHand  bool `json:",omitempty"` // an edit of the operator

	Holder      string        `json:",omitempty"`
	Acquired    time.Time     // by the holder's clock
	Renewed     time.Time     // by the holder's clock
	Duration    time.Duration `json:",omitempty"`
	EmptyString bool          `json:",omitempty"` // the holder is "", as client-go writes it
	Table       string        `json:",omitempty"` // of a group
}

// A term identifies the time for which one holder held a Lease.
type term struct {
	uid, holder string
	acquired    int64
}

func (e event) term() term {
	if e.Deleted {
		return term{}
	}
	return term{e.UID, e.Holder, e.Acquired.UnixMicro()}
}

// handAnnotation numbers the operator's edits, so that one whose reply was lost can be recognised.
const handAnnotation = "chaos/hand"

// A leaseHistory records all states of the leases. It watches etcd, because the API server does not serve events from
// before its restart.
type leaseHistory struct {
	mu      sync.Mutex
	events  map[string][]event               // by lease
	hands   map[string]string                // by lease: the last annotation
	present map[string]*coordinationv1.Lease // that exist
	pages   map[string]string                // of sets of keys that groups had, by lease
}

func newLeaseHistory() *leaseHistory {
	return &leaseHistory{
		events: map[string][]event{}, hands: map[string]string{}, present: map[string]*coordinationv1.Lease{},
		pages: map[string]string{},
	}
}

// follow watches the leases of a namespace until ctx ends. etcd may come and go meanwhile.
func (h *leaseHistory) follow(ctx context.Context, socket, namespace string) (wait func() error, err error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	prefix := "/registry/leases/" + namespace + "/"
	now, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	changes := client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithPrevKV(),
		clientv3.WithRev(now.Header.Revision+1))
	done := make(chan error, 1)
	go func() { done <- h.note(changes) }()
	return func() error {
		err := <-done
		if e := client.Close(); !errors.Is(e, context.Canceled) {
			err = errors.Join(err, e)
		}
		return err
	}, nil
}

func (h *leaseHistory) note(changes clientv3.WatchChan) error {
	for r := range changes {
		if err := r.Err(); err != nil && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("the history has a gap: %w", err)
		}
		for _, e := range r.Events {
			kv, deleted := e.Kv, e.Type == clientv3.EventTypeDelete
			if deleted {
				kv = e.PrevKv
			}
			l := new(coordinationv1.Lease)
			if _, _, err := scheme.Codecs.UniversalDeserializer().Decode(kv.Value, nil, l); err != nil {
				return err
			}
			l.ResourceVersion = fmt.Sprint(e.Kv.ModRevision)
			h.add(l, uint64(e.Kv.ModRevision), deleted)
		}
	}
	return nil
}

func (h *leaseHistory) add(l *coordinationv1.Lease, version uint64, deleted bool) {
	e := event{At: boottime.Now(), Version: version, UID: string(l.UID), Deleted: deleted}
	if l.Spec.HolderIdentity != nil {
		e.Holder = *l.Spec.HolderIdentity
		e.EmptyString = e.Holder == ""
	}
	if l.Spec.AcquireTime != nil {
		e.Acquired = l.Spec.AcquireTime.Time
	}
	if l.Spec.RenewTime != nil {
		e.Renewed = l.Spec.RenewTime.Time
	}
	if l.Spec.LeaseDurationSeconds != nil {
		e.Duration = time.Duration(*l.Spec.LeaseDurationSeconds) * time.Second
	}
	e.Table = l.Annotations[tableAnnotation]
	h.mu.Lock()
	defer h.mu.Unlock()
	h.present[l.Name] = l
	if deleted {
		delete(h.present, l.Name)
	}
	if page := l.Annotations[keysAnnotation]; page != "" {
		h.pages[l.Name] = page
	}
	hand := l.Annotations[handAnnotation]
	e.ByHand = e.Deleted || hand != "" && hand != h.hands[l.Name] // only the operator deletes
	if hand != "" {
		h.hands[l.Name] = hand
	}
	h.events[l.Name] = append(h.events[l.Name], e)
}

// last returns the last state of a Lease.
func (h *leaseHistory) last(lease string) event {
	h.mu.Lock()
	defer h.mu.Unlock()
	events := h.events[lease]
	if len(events) == 0 {
		return event{Deleted: true}
	}
	return events[len(events)-1]
}

// all returns the events by lease, and the sets of keys.
func (h *leaseHistory) all() (events map[string][]event, pages map[string]string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	events = map[string][]event{}
	for lease, of := range h.events {
		events[lease] = append([]event(nil), of...)
	}
	return events, maps.Clone(h.pages)
}

// A fault is the record of an injected fault.
type fault struct {
	From, To  time.Duration
	Kind      string
	Candidate string `json:",omitempty"` // "" for all of them
	Lease     string `json:",omitempty"` // of an operator's edit
	Text      string
}
