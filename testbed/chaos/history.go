package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	toolswatch "k8s.io/client-go/tools/watch"

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

// A historian writes down all states of the leases.
type historian struct {
	mu     sync.Mutex
	events map[string][]event // by lease
	hands  map[string]string  // by lease: the last annotation
}

// follow watches until ctx ends. The API server may come and go meanwhile.
func (h *historian) follow(ctx context.Context, leases coordinationv1client.LeaseInterface) (wait func() error, err error) {
	list, err := leases.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	w, err := toolswatch.NewRetryWatcherWithContext(ctx, list.ResourceVersion, watcher{leases})
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			for e := range w.ResultChan() {
				l, ok := e.Object.(*coordinationv1.Lease)
				if !ok {
					return fmt.Errorf("the history has a gap: %v %v", e.Type, e.Object)
				}
				if err := h.add(e.Type, l); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	return func() error { return <-done }, nil
}

// watcher is what a RetryWatcher wants.
type watcher struct {
	coordinationv1client.LeaseInterface
}

func (w watcher) WatchWithContext(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return w.Watch(ctx, o)
}

func (h *historian) add(kind watch.EventType, l *coordinationv1.Lease) error {
	version, err := strconv.ParseUint(l.ResourceVersion, 10, 64)
	if err != nil {
		return err
	}
	e := event{At: boottime.Now(), Version: version, UID: string(l.UID), Deleted: kind == watch.Deleted}
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
	return nil
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

func (f fault) line(start time.Duration) string {
	return fmt.Sprintf("%7.2f s  %s", (f.From - start).Seconds(), f.Text)
}
