package leasectrl_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leasectrl"
)

type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

func newQueue() queue {
	return workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
}

// drain returns what is in a queue.
func drain(q queue) (requests []string) {
	for q.Len() > 0 {
		req, _ := q.Get()
		q.Done(req)
		requests = append(requests, req.String())
	}
	slices.Sort(requests)
	return requests
}

// What is gained is requeued, once, and nothing else; one list serves buckets that are gained together.
func TestSource(t *testing.T) {
	inFleet(t, func(f *fleet) {
		f.change(100)
		var lists, failing atomic.Int64
		list := func(ctx context.Context) ([]reconcile.Request, error) {
			lists.Add(1)
			if failing.Add(-1) >= 0 {
				return nil, errors.New("not now")
			}
			return f.list(ctx)
		}
		ctx, cancel := context.WithCancel(f.Context())
		defer cancel()
		start := func(name string) (ring *leasehold.Ring, q queue, stop func()) {
			joined, leave := context.WithCancel(f.Context())
			ring, _ = f.join(joined, name)
			q = newQueue()
			if err := leasectrl.Source(ring, list).Start(ctx, q); err != nil {
				t.Fatal(err)
			}
			return ring, q, func() {
				leave()
				ring.Wait()
				q.ShutDown()
			}
		}
		a, queueA, stopA := start("a")
		time.Sleep(2 * time.Second)
		if got := drain(queueA); len(got) != 100 {
			t.Errorf("%d of 100 are requeued when everything is gained", len(got))
		}
		if n := lists.Load(); n > 3 {
			t.Errorf("%d lists for %d buckets", n, buckets)
		}
		failing.Store(3)
		b, queueB, stopB := start("b")
		time.Sleep(2 * duration)
		if n := failing.Load(); n >= 0 {
			t.Errorf("%d lists were to fail yet", n+1)
		}
		gained := drain(queueB)
		var want []string
		for i := range 100 {
			if key := "default/" + name(i); b.Owns(key) {
				want = append(want, key)
			} else if !a.Owns(key) {
				t.Errorf("nobody owns %s", key)
			}
		}
		slices.Sort(want)
		if !slices.Equal(gained, want) || len(want) == 0 {
			t.Errorf("b has requeued %v, want %v", gained, want)
		}
		if got := drain(queueA); got != nil {
			t.Errorf("a has requeued %v", got)
		}
		stopA()
		time.Sleep(time.Second)
		if got := drain(queueB); len(got) != 100-len(want) {
			t.Errorf("b has requeued %d more, want %d", len(got), 100-len(want))
		}
		stopB()
	})
}

// A gain that was lost again before it was requeued is not.
func TestSourceLostAgain(t *testing.T) {
	inFleet(t, func(f *fleet) {
		f.change(100)
		ctx, cancel := context.WithCancel(f.Context())
		ring, _ := f.join(ctx, "a")
		q := newQueue()
		slow := func(ctx context.Context) ([]reconcile.Request, error) {
			time.Sleep(duration)
			return f.list(ctx)
		}
		if err := leasectrl.Source(ring, slow).Start(f.Context(), q); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		cancel()
		ring.Wait()
		time.Sleep(2 * duration)
		if got := drain(q); got != nil {
			t.Errorf("requeued %v", got)
		}
		q.ShutDown()
	})
}

func TestList(t *testing.T) {
	object := func(namespace, name string) client.Object {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	}
	reader := fake.NewClientBuilder().WithObjects(object("x", "a"), object("x", "b"), object("y", "c")).Build()
	for _, test := range []struct {
		opts []client.ListOption
		want int
	}{{nil, 3}, {[]client.ListOption{client.InNamespace("x")}, 2}} {
		list := leasectrl.List(reader, &corev1.ConfigMapList{}, test.opts...)
		for range 2 {
			if got, err := list(t.Context()); len(got) != test.want || err != nil {
				t.Errorf("%v, %v; want %d", got, err, test.want)
			}
		}
	}
}
