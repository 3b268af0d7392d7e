package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/leasehold-go/leasehold/testbed/internal/boottime"
)

// An event is one state of a Lease, as the API server keeps it. Together they are all its states, in order.
type event struct {
	At      time.Duration // when the harness heard of it: not before it was
	Version uint64
	UID     string
	Deleted bool `json:",omitempty"`
	ByHand  bool `json:",omitempty"` // the operator's doing

	Holder      string        `json:",omitempty"`
	Acquired    time.Time     // by the holder's clock
	Renewed     time.Time     // the same
	Duration    time.Duration `json:",omitempty"`
	EmptyString bool          `json:",omitempty"` // the holder is "", as client-go releases a lease, instead of absent
}

// term is what a session's record keeps.
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

// handAnnotation numbers what the operator does, so that a write whose reply was lost can be told from others'.
const handAnnotation = "chaos/hand"

// A historian writes down all states of the leases. It asks etcd: the API server, when it was killed, forgets what happened
// before, and watches have gaps.
type historian struct {
	mu     sync.Mutex
	events map[string][]event // by lease
	hands  map[string]string  // by lease: the last annotation
}

// follow watches the leases of a namespace until ctx ends. etcd may come and go meanwhile.
func (h *historian) follow(ctx context.Context, socket, namespace string) (wait func() error, err error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	prefix := "/registry/leases/" + namespace + "/"
	now, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	changes := client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(now.Header.Revision+1))
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

func (h *historian) note(changes clientv3.WatchChan) error {
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
			h.add(l, uint64(e.Kv.ModRevision), deleted)
		}
	}
	return nil
}

func (h *historian) add(l *coordinationv1.Lease, version uint64, deleted bool) {
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
	h.mu.Lock()
	defer h.mu.Unlock()
	hand := l.Annotations[handAnnotation]
	e.ByHand = e.Deleted || hand != "" && hand != h.hands[l.Name] // nobody else deletes
	if hand != "" {
		h.hands[l.Name] = hand
	}
	h.events[l.Name] = append(h.events[l.Name], e)
}

// last returns the last state of a Lease.
func (h *historian) last(lease string) event {
	h.mu.Lock()
	defer h.mu.Unlock()
	events := h.events[lease]
	if len(events) == 0 {
		return event{Deleted: true}
	}
	return events[len(events)-1]
}

func (h *historian) all() map[string][]event {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := map[string][]event{}
	for lease, events := range h.events {
		all[lease] = append([]event(nil), events...)
	}
	return all
}

// A fault is something that the harness did, and undid.
type fault struct {
	From, To  time.Duration
	Kind      string
	Candidate string `json:",omitempty"` // none: all of them
	Lease     string `json:",omitempty"` // of an operator's deed
	Text      string
}
