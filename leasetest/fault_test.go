package leasetest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/leasehold-go/leasehold/leasetest"
)

const ns, name = "default", "lease"

func lease(holder string) *coordinationv1.Lease {
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder},
	}
}

func take(ctx context.Context, leases coordinationv1client.LeaseInterface, holder string) error {
	_, err := leases.Patch(ctx, name, types.MergePatchType, []byte(`{"spec":{"holderIdentity":"`+holder+`"}}`),
		metav1.PatchOptions{})
	return err
}

func holder(srv *leasetest.Server) string { return *srv.Lease(ns, name).Spec.HolderIdentity }

func TestFault(t *testing.T) {
	refused := leasetest.ConnectionRefused()
	const s = time.Second
	for _, tt := range []struct {
		name     string
		fault    leasetest.Fault
		err      error         // of a caller who waits 10s
		answered time.Duration // after so long
		landed   time.Duration // after so long; -1 never
	}{
		{"none", leasetest.Fault{}, nil, 0, 0},
		{"slow there", leasetest.Fault{Before: 3 * s}, nil, 3 * s, 3 * s},
		{"slow back", leasetest.Fault{After: 3 * s}, nil, 3 * s, 0},
		{"slow both ways", leasetest.Fault{Before: 2 * s, After: 3 * s}, nil, 5 * s, 2 * s},
		{"refused", leasetest.Fault{Err: refused}, refused, 0, -1},
		{"refused slowly", leasetest.Fault{Before: 2 * s, After: 1 * s, Err: refused}, refused, 3 * s, -1},
		{"lost there", leasetest.Fault{Drop: leasetest.TheRequest}, context.DeadlineExceeded, 10 * s, -1},
		{"lost there, error", leasetest.Fault{Drop: leasetest.TheRequest, Err: refused}, refused, 0, -1},
		{"lost on the way back", leasetest.Fault{Before: 2 * s, Drop: leasetest.TheReply}, context.DeadlineExceeded,
			10 * s, 2 * s},
		{"lost on the way back, error", leasetest.Fault{After: 2 * s, Drop: leasetest.TheReply, Err: refused}, refused,
			2 * s, 0},
		{"given up before it took effect", leasetest.Fault{Before: 20 * s}, context.DeadlineExceeded, 10 * s, -1},
		{"given up, lands later", leasetest.Fault{Before: 20 * s, Late: true}, context.DeadlineExceeded,
			10 * s, 20 * s},
		{"late, but awaited", leasetest.Fault{Before: 2 * s, Late: true, After: 1 * s}, nil, 3 * s, 2 * s},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := leasetest.NewServer()
				srv.Put(lease("a"))
				start, landed := time.Now(), time.Duration(-1)
				srv.OnCommit(func(leasetest.Change) { landed = time.Since(start) })
				client := srv.Client("b")
				client.OnRequest(func(leasetest.Request) leasetest.Fault { return tt.fault })

				ctx, cancel := context.WithTimeout(t.Context(), 10*s)
				defer cancel()
				if err := take(ctx, client.Leases(ns), "b"); !errors.Is(err, tt.err) {
					t.Errorf("got %v, want %v", err, tt.err)
				}
				if d := time.Since(start); d != tt.answered {
					t.Errorf("answered after %v, want %v", d, tt.answered)
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				if landed != tt.landed {
					t.Errorf("took effect after %v, want %v", landed, tt.landed)
				}
			})
		})
	}
}

func TestRequestTellsWhatIsAsked(t *testing.T) {
	srv := leasetest.NewServer()
	client := srv.Client("a")
	var got leasetest.Request
	client.OnRequest(func(r leasetest.Request) leasetest.Fault {
		got = r
		return leasetest.Fault{Err: leasetest.Forbidden(r)}
	})
	err := take(t.Context(), client.Leases(ns), "b")
	if got.Client != "a" || got.Verb != "patch" || got.Namespace != ns || got.Name != name || got.Count != 1 ||
		string(got.Body) != `{"spec":{"holderIdentity":"b"}}` {
		t.Errorf("got %+v", got)
	}
	const want = `leases.coordination.k8s.io "lease" is forbidden: User "system:serviceaccount:default:leasetest" ` +
		`cannot patch resource "leases" in API group "coordination.k8s.io" in the namespace "default"`
	if !apierrors.IsForbidden(err) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if n := client.Requests(); n != 1 {
		t.Errorf("got %d requests, want 1", n)
	}
}

func TestPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := leasetest.NewServer()
		first := srv.Put(lease("a"))
		a, b := srv.Client("a"), srv.Client("b")
		w, err := a.Leases(ns).Watch(t.Context(), metav1.ListOptions{ResourceVersion: first.ResourceVersion})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Stop()

		a.Partition(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := take(ctx, a.Leases(ns), "a2"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want a timeout", err)
		}
		if err := take(t.Context(), b.Leases(ns), "b"); err != nil {
			t.Error(err)
		}
		late, err := a.Leases(ns).Watch(ctx, metav1.ListOptions{})
		if late != nil || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, %v, want a timeout", late, err)
		}
		synctest.Wait()
		select {
		case ev := <-w.ResultChan():
			t.Errorf("got %v while cut off", ev)
		default:
		}

		a.Partition(false)
		if ev := <-w.ResultChan(); *ev.Object.(*coordinationv1.Lease).Spec.HolderIdentity != "b" {
			t.Errorf("got %v", ev)
		}
		if err := take(t.Context(), a.Leases(ns), "a"); err != nil {
			t.Error(err)
		}
	})
}

func TestPartitionLosesRepliesUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := leasetest.NewServer()
		srv.Put(lease("a"))
		client := srv.Client("b")
		client.OnRequest(func(leasetest.Request) leasetest.Fault { return leasetest.Fault{After: 2 * time.Second} })
		time.AfterFunc(time.Second, func() { client.Partition(true) })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := take(ctx, client.Leases(ns), "b"); !errors.Is(err, context.DeadlineExceeded) || holder(srv) != "b" {
			t.Errorf("got %v, holder %s; want a timeout, and b", err, holder(srv))
		}
	})
}

func TestErrorsAreAsTheServerAndTheNetworkSendThem(t *testing.T) {
	status := func(code int32) func(error) bool {
		return func(err error) bool {
			var s apierrors.APIStatus
			return errors.As(err, &s) && s.Status().Code == code
		}
	}
	is := func(target error) func(error) bool {
		return func(err error) bool { return errors.Is(err, target) }
	}
	for _, tt := range []struct {
		err  error
		want func(error) bool
	}{
		{leasetest.TooManyRequests(1500 * time.Millisecond), status(429)},
		{leasetest.TooManyRequests(1500 * time.Millisecond), func(err error) bool {
			seconds, ok := apierrors.SuggestsClientDelay(err)
			return ok && seconds == 2
		}},
		{leasetest.InternalError(), apierrors.IsInternalError},
		{leasetest.ServerTimeout(), apierrors.IsTimeout},
		{leasetest.ServiceUnavailable(), apierrors.IsServiceUnavailable},
		{leasetest.Unauthorized(), apierrors.IsUnauthorized},
		{leasetest.ConnectionRefused(), is(syscall.ECONNREFUSED)},
		{leasetest.ConnectionReset(), is(syscall.ECONNRESET)},
		{leasetest.EOF(), is(io.EOF)},
		{leasetest.NetTimeout(), func(err error) bool {
			var timeout net.Error
			return errors.As(err, &timeout) && timeout.Timeout()
		}},
		{leasetest.NetTimeout(), func(err error) bool { _, ok := errors.AsType[*url.Error](err); return ok }},
	} {
		if !tt.want(tt.err) {
			t.Errorf("%v is not what it should be", tt.err)
		}
	}
}
