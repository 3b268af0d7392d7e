package leaserest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// A watcher is an open watch.
type watcher struct {
	leases   *Leases
	events   chan watch.Event
	cancel   context.CancelFunc
	panicked atomic.Pointer[any] // what the program's code did with the answer; stored before events is closed
}

func (w *watcher) ResultChan() <-chan watch.Event { return w.events }

// Stop ends the watch. Its channel is closed a moment later.
func (w *watcher) Stop() { w.cancel() }

// Repanic goes on with the panic of the program's code, whose transport wraps the answer, that has ended the watch.
func (w *watcher) Repanic() {
	if value := w.panicked.Swap(nil); value != nil {
		panic(*value)
	}
}

// run passes on what comes until the answer or ctx ends. What cannot be read or decoded is an ERROR event.
func (w *watcher) run(ctx context.Context, resp *http.Response) {
	defer close(w.events)
	defer func() {
		if value := recover(); value != nil {
			w.panicked.Store(&value)
		}
	}()
	defer w.cancel()
	defer w.leases.watches.Add(-1)
	defer resp.Body.Close()
	err := w.pass(ctx, resp)
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || ctx.Err() != nil {
		return
	}
	w.send(ctx, watch.Event{Type: watch.Error, Object: &metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError,
		Message: fmt.Sprintf("watch ended: %v", err),
	}})
}

func (w *watcher) pass(ctx context.Context, resp *http.Response) error {
	content := resp.Header.Get("Content-Type")
	events, err := newEvents(content, resp.Body)
	if err != nil {
		return err
	}
	for {
		kind, data, err := events.next()
		if err != nil {
			return err
		}
		event := watch.Event{Type: watch.EventType(kind)}
		if event.Object, err = w.decode(content, data, event.Type); err != nil {
			return fmt.Errorf("%s event: %w", kind, err)
		}
		if !w.send(ctx, event) {
			return nil
		}
	}
}

// send passes an event on. It returns false when ctx has ended.
func (w *watcher) send(ctx context.Context, event watch.Event) bool {
	select {
	case w.events <- event:
		return true
	case <-ctx.Done():
		return false
	}
}

// decode reads the object of an event: a Status in one that is an error, else a Lease.
func (w *watcher) decode(content string, data []byte, kind watch.EventType) (runtime.Object, error) {
	if kind == watch.Error {
		status := &metav1.Status{}
		return status, decode(content, data, status)
	}
	return w.leases.decode(content, data, w.leases.patches.Load() > 0)
}
