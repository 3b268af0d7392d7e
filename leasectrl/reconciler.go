package leasectrl

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/leasehold-go/leasehold"
)

// Reconciler returns a reconciler that calls next for the objects whose buckets this replica owns, and leaves out all
// other requests. Source brings those back when this replica gains their bucket, so a controller needs both.
//
// The context of next has the values of the controller's, and the session of the bucket: leasehold.FromContext finds
// it, with its fencing token. It ends when the session ends or the controller's context does; context.Cause says why.
// The bucket is given on only after next has returned, also by a panic. What next returned is dropped once the session
// has ended: the next owner reconciles the object, and no retry or timer of this replica is to.
func Reconciler(ring *leasehold.Ring, next reconcile.Reconciler, opts ...Option) reconcile.Reconciler {
	return &reconciler{ring: ring, next: next, options: newOptions(opts)}
}

type reconciler struct {
	ring *leasehold.Ring
	next reconcile.Reconciler
	options
}

func (r *reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	key, err := r.key(ctx, req)
	if err != nil {
		if apierrors.IsNotFound(err) {
			err = nil
		}
		return reconcile.Result{}, err
	}
	s, leave, ok := r.ring.Enter(key)
	if !ok {
		return reconcile.Result{}, nil
	}
	defer leave()
	if r.share != nil {
		uncover, ok := r.share.enter(key)
		if !ok {
			return reconcile.Result{}, nil // Source brings it back once the cache covers it
		}
		defer uncover()
	}
	work := newWork(ctx, s)
	defer work.cancel(nil)
	result, err := r.next.Reconcile(work, req)
	switch {
	case s.Err() != nil:
		return reconcile.Result{}, nil
	case err == nil && result.IsZero() && r.share != nil:
		r.share.reconciled(req.NamespacedName, key)
	}
	return result, err
}

// A work is the context of a reconcile. Its Err is right even if no timer has fired yet, as that of a session is.
type work struct {
	context.Context // ends with the session's, and with outer
	session         leasehold.Session
	outer           context.Context
	cancel          context.CancelCauseFunc
}

// newWork returns a context with the values of outer and the session, which ends when either does, or by cancel.
func newWork(outer context.Context, s leasehold.Session) *work {
	inner, cancelInner := context.WithCancelCause(s.Context())
	stop := context.AfterFunc(outer, func() { cancelInner(context.Cause(outer)) })
	cancel := func(cause error) {
		stop()
		cancelInner(cause)
	}
	return &work{inner, s, outer, cancel}
}

func (w *work) Err() error {
	if w.outer.Err() != nil {
		w.cancel(context.Cause(w.outer))
	} else if err := w.session.Err(); err != nil {
		w.cancel(err)
	}
	return w.Context.Err()
}

// Deadline returns the earlier one.
func (w *work) Deadline() (time.Time, bool) {
	deadline, ok := w.Context.Deadline()
	if outer, has := w.outer.Deadline(); has && (!ok || outer.Before(deadline)) {
		return outer, true
	}
	return deadline, ok
}

// Value returns the session, and otherwise what outer has.
func (w *work) Value(key any) any {
	value := w.Context.Value(key)
	if value == any(w.Context) {
		return value // by which contexts that are derived from w end with it
	}
	if _, ok := value.(leasehold.Session); ok {
		return value
	}
	return w.outer.Value(key)
}
