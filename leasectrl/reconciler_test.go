package leasectrl_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leasectrl"
)

// Replicas that join, stop, crash and are cut off reconcile each object, one at a time, and forget none.
func TestFleet(t *testing.T) {
	inFleet(t, func(f *fleet) {
		const objects = 200
		f.change(objects)
		a := f.start("a", f.work("a", 20*time.Millisecond))
		time.Sleep(5 * time.Second)
		f.allSeen()
		f.change(objects)
		b := f.start("b", f.work("b", 20*time.Millisecond))
		f.start("c", f.work("c", 20*time.Millisecond))
		time.Sleep(100 * time.Millisecond) // in the middle of the work
		f.change(objects)
		time.Sleep(duration)
		f.allSeen()
		for _, name := range []string{"a", "b", "c"} {
			if f.by[name] == 0 {
				t.Errorf("%s has reconciled nothing", name)
			}
		}

		a.client.Partition(true) // its sessions end, and others have its objects
		f.change(objects)
		time.Sleep(2 * duration)
		f.allSeen()
		a.client.Partition(false)
		f.change(objects)
		b.quit()
		f.change(objects)
		time.Sleep(2 * duration)
		f.allSeen()

		for i := range 5 { // a rollout
			f.start(fmt.Sprint("new-", i), f.work(fmt.Sprint("new-", i), 20*time.Millisecond))
			time.Sleep(interval + time.Second)
			f.change(objects)
			for r := range f.replicas {
				r.quit()
				break
			}
		}
		time.Sleep(duration)
		f.allSeen()
	})
}

// The ring's word decides who reconciles.
func TestReconcilerOwner(t *testing.T) {
	inFleet(t, func(f *fleet) {
		ctx, cancel := context.WithCancel(f.Context())
		a, _ := f.join(ctx, "a")
		b, _ := f.join(ctx, "b")
		time.Sleep(duration)
		owned := map[*leasehold.Ring]int{}
		for i := range 100 {
			req := requestOf(name(i))
			for _, ring := range []*leasehold.Ring{a, b} {
				called := 0
				next := reconcile.Func(func(context.Context, reconcile.Request) (reconcile.Result, error) {
					called++
					return reconcile.Result{RequeueAfter: time.Minute}, nil
				})
				result, err := leasectrl.Reconciler(ring, next).Reconcile(ctx, req)
				owns := ring.Owns("default/" + req.Name)
				if owns != (called == 1) || owns != !result.IsZero() || err != nil {
					t.Errorf("%v: owned %v, called %d times: %v, %v", req, owns, called, result, err)
				}
				owned[ring] += called
			}
		}
		if owned[a]+owned[b] != 100 || owned[a] == 0 || owned[b] == 0 {
			t.Errorf("a has reconciled %d, b %d of 100", owned[a], owned[b])
		}
		cancel()
		a.Wait()
		b.Wait()
	})
}

// A bucket that moves waits for the reconcile in it, whose context has ended and whose result is dropped.
func TestReconcilerMoves(t *testing.T) {
	inFleet(t, func(f *fleet) {
		ctx, cancel := context.WithCancel(f.Context())
		a, _ := f.join(ctx, "a")
		time.Sleep(2 * time.Second)
		results := make(chan error, 100)
		moved := make(chan reconcile.Request, 100)
		goOn := make(chan struct{})
		r := leasectrl.Reconciler(a, reconcile.Func(
			func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
				<-ctx.Done()
				if cause := context.Cause(ctx); errors.Is(cause, leasehold.ErrMoved) && ctx.Err() == context.Canceled {
					moved <- req
				}
				<-goOn
				return reconcile.Result{RequeueAfter: time.Second}, ctx.Err()
			}))
		for i := range 100 {
			go func() {
				result, err := r.Reconcile(ctx, requestOf(name(i)))
				if !result.IsZero() {
					err = fmt.Errorf("result %v", result)
				}
				results <- err
			}()
		}
		b, _ := f.join(ctx, "b")
		time.Sleep(3 * duration)
		if len(moved) == 0 || len(moved) == 100 {
			t.Fatalf("%d of 100 moved", len(moved))
		}
		var names []string
		for len(moved) > 0 {
			req := <-moved
			names = append(names, req.String())
			if a.Owns(req.String()) || b.Owns(req.String()) {
				t.Errorf("%v: owned by a: %v, by b: %v", req, a.Owns(req.String()), b.Owns(req.String()))
			}
		}
		close(goOn)
		time.Sleep(time.Second)
		for _, name := range names {
			if !b.Owns(name) {
				t.Errorf("%s has not moved", name)
			}
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		cancel()
		a.Wait()
		b.Wait()
		synctest.Wait()
		for range 100 - len(names) {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
	})
}

// A panic leaves the bucket, too.
func TestReconcilerPanics(t *testing.T) {
	inFleet(t, func(f *fleet) {
		ctx, cancel := context.WithCancel(f.Context())
		a, _ := f.join(ctx, "a")
		time.Sleep(2 * time.Second)
		r := leasectrl.Reconciler(a, reconcile.Func(func(context.Context, reconcile.Request) (reconcile.Result, error) {
			panic("oops")
		}))
		func() {
			defer func() {
				if recover() != "oops" {
					t.Error("no panic")
				}
			}()
			_, _ = r.Reconcile(ctx, requestOf("widget"))
		}()
		cancel()
		a.Wait()
	})
}

// The context of a reconcile has the values and the deadline of the controller's, and ends with it; it has the session
// of the bucket, and is right about its end when no timer has fired.
func TestReconcilerContext(t *testing.T) {
	inFleet(t, func(f *fleet) {
		type key struct{}
		type both struct{}
		joined, leave := context.WithCancel(context.WithValue(f.Context(), both{}, "ring"))
		a, client := f.join(joined, "a")
		time.Sleep(2 * time.Second)
		reconciling := func(outer context.Context, next func(context.Context)) {
			called := false
			r := leasectrl.Reconciler(a, reconcile.Func(
				func(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
					called = true
					next(ctx)
					return reconcile.Result{}, nil
				}))
			if _, err := r.Reconcile(outer, requestOf("widget")); err != nil || !called {
				t.Errorf("called %v, %v", called, err)
			}
		}
		outer := context.WithValue(context.WithValue(f.Context(), key{}, "here"), both{}, "controller")
		outer, cancel := context.WithTimeoutCause(outer, time.Second, errors.New("too slow"))
		reconciling(outer, func(ctx context.Context) {
			if ctx.Value(key{}) != "here" || ctx.Value(both{}) != "controller" {
				t.Errorf("values %v, %v", ctx.Value(key{}), ctx.Value(both{}))
			}
			deadline, ok := ctx.Deadline()
			if want, _ := outer.Deadline(); !ok || deadline != want {
				t.Errorf("deadline %v, %v, want %v", deadline, ok, want)
			}
			s, ok := leasehold.FromContext(ctx)
			if !ok || s.FencingToken() == 0 || s.Err() != nil || ctx.Err() != nil {
				t.Errorf("session %v, %v, %v", ok, s.Err(), ctx.Err())
			}
			child, cancel := context.WithCancel(context.WithValue(ctx, key{}, "child"))
			defer cancel()
			<-child.Done()
			if cause := context.Cause(child); cause.Error() != "too slow" || ctx.Err() == nil || s.Err() != nil {
				t.Errorf("cause %v, %v; session %v", cause, ctx.Err(), s.Err())
			}
		})
		cancel()
		reconciling(f.Context(), func(ctx context.Context) {
			client.Partition(true)
			s, _ := leasehold.FromContext(ctx)
			for ctx.Err() == nil {
				time.Sleep(time.Second)
			}
			if s.Err() == nil || !errors.Is(context.Cause(ctx), leasehold.ErrLost) {
				t.Errorf("session %v, cause %v", s.Err(), context.Cause(ctx))
			}
			select {
			case <-ctx.Done():
			default:
				t.Error("Err says it has ended, Done does not")
			}
		})
		leave()
		a.Wait()
	})
}

func TestReconcilerKeys(t *testing.T) {
	inFleet(t, func(f *fleet) {
		ctx, cancel := context.WithCancel(f.Context())
		a, _ := f.join(ctx, "a")
		time.Sleep(2 * time.Second)
		broken := errors.New("broken")
		missing := apierrors.NewNotFound(schema.GroupResource{}, "widget")
		for _, test := range []struct {
			err, want error
			called    bool
		}{{nil, nil, true}, {broken, broken, false}, {fmt.Errorf("no uid: %w", missing), nil, false}} {
			called := false
			next := reconcile.Func(func(context.Context, reconcile.Request) (reconcile.Result, error) {
				called = true
				return reconcile.Result{}, nil
			})
			key := func(context.Context, reconcile.Request) (string, error) { return "key", test.err }
			_, err := leasectrl.Reconciler(a, next, leasectrl.WithKey(key)).Reconcile(ctx, requestOf("widget"))
			if err != test.want || called != test.called {
				t.Errorf("%v: called %v, %v", test.err, called, err)
			}
		}
		cancel()
		a.Wait()
	})
	broken := errors.New("broken")
	failing := leasectrl.Hashed(func(context.Context, reconcile.Request) (string, error) { return "", broken })
	if _, err := failing(t.Context(), requestOf("widget")); err != broken {
		t.Errorf("error %v", err)
	}
	for _, test := range []struct {
		key             leasectrl.KeyFunc
		namespace, want string
	}{
		{leasectrl.NamespacedName, "default", "default/widget"},
		{leasectrl.NamespacedName, "", "widget"},
		{leasectrl.Namespace, "default", "default"},
	} {
		req := requestOf("widget")
		req.Namespace = test.namespace
		if got, err := test.key(t.Context(), req); got != test.want || err != nil {
			t.Errorf("key %q, %v, want %q", got, err, test.want)
		}
	}
}

// Names that are numbered are spread over the buckets by their hashes.
func TestHashed(t *testing.T) {
	inFleet(t, func(f *fleet) {
		ctx, cancel := context.WithCancel(f.Context())
		a, _ := f.join(ctx, "a")
		b, _ := f.join(ctx, "b")
		time.Sleep(duration)
		key := leasectrl.Hashed(leasectrl.NamespacedName)
		owned := 0
		for i := range 1000 {
			key, err := key(ctx, requestOf(fmt.Sprintf("widget-%03d", i)))
			if err != nil || a.Owns(key) == b.Owns(key) {
				t.Errorf("%s: %v, %v, %v", key, err, a.Owns(key), b.Owns(key))
			}
			if a.Owns(key) {
				owned++
			}
		}
		if owned < 400 || owned > 600 {
			t.Errorf("%d of 1000 objects are in half of the buckets", owned)
		}
		cancel()
		a.Wait()
		b.Wait()
	})
}
