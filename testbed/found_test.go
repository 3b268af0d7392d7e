package testbed_test

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/controlplane"
)

// renewByHand renews the Lease as its holder would.
func (f *fleet) renewByHand() {
	f.Helper()
	f.patch(`{"spec":{"renewTime":"` + time.Now().UTC().Format(metav1.RFC3339Micro) + `"}}`)
}

// A Lease with a finalizer is deleted at the release and stays. The campaign acquires it all the same, with few
// requests, also if it hears of the deletion late, and the Lease is gone once the finalizer is.
func TestDeleteOnReleaseWithFinalizer_G8(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	kept := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: lease, Finalizers: []string{"example.com/keep"}}}
	if _, err := f.admin.Create(t.Context(), kept, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	config := f.server.Config()
	var requests, deletions, creations atomic.Int64
	events := newGate()
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			requests.Add(1)
			switch req.Method {
			case http.MethodDelete:
				deletions.Add(1)
				events.close() // its answer comes before its event
			case http.MethodPost:
				creations.Add(1)
				events.open()
			case http.MethodPatch:
				events.open()
			}
			resp, err := next.RoundTrip(req)
			if err == nil && req.URL.Query().Has("watch") {
				resp.Body = gatedBody{resp.Body, events, req.Context()}
			}
			return resp, err
		})
	})
	var m leasehold.Monitor
	turns, ending := make(chan struct{}), make(chan struct{})
	one := f.run("one", func(s leasehold.Session) {
		if err := m.Check(nil); err != nil {
			t.Error(err)
		}
		select {
		case turns <- struct{}{}:
		case <-ending:
		}
	}, leasehold.WithRESTConfig(config), leasehold.WithDuration(time.Second), leasehold.WithDeleteOnRelease(),
		leasehold.WithMonitor(&m))
	await := func(n int) {
		t.Helper()
		for range n {
			select {
			case <-turns:
			case <-time.After(time.Minute):
				t.Fatal("not led for a minute")
			}
		}
	}
	await(3)
	if f.get().DeletionTimestamp == nil {
		t.Error("the Lease was not deleted")
	}
	if n, d, c := requests.Load(), deletions.Load(), creations.Load(); n > 30 || d != 1 || c != 0 {
		t.Errorf("%d requests, %d of them to delete the Lease and %d to create it; want it deleted once", n, d, c)
	}
	f.patch(`{"metadata":{"finalizers":null}}`)
	await(3)
	close(ending)
	one.quit()
	if _, err := f.admin.Get(t.Context(), lease, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Lease is left: %v", err)
	}
}

// A gate holds back what passes it while it is closed.
type gate struct {
	mu     sync.Mutex
	opened chan struct{} // closed while the gate is open
}

func newGate() *gate {
	g := &gate{opened: make(chan struct{})}
	close(g.opened)
	return g
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.opened:
		g.opened = make(chan struct{})
	default:
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.opened:
	default:
		close(g.opened)
	}
}

// wait waits until the gate is open, or ctx ends.
func (g *gate) wait(ctx context.Context) {
	g.mu.Lock()
	opened := g.opened
	g.mu.Unlock()
	select {
	case <-opened:
	case <-ctx.Done():
	}
}

// A gatedBody is the body of the response to a request with that context, and passes a gate.
type gatedBody struct {
	io.ReadCloser
	gate *gate
	ctx  context.Context
}

func (b gatedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.gate.wait(b.ctx)
	return n, err
}

// A gateway is an HTTP proxy before the API server that can answer itself.
type gateway struct {
	config *rest.Config
	answer atomic.Pointer[func(http.ResponseWriter, *http.Request) bool] // nil passes all on
}

func newGateway(f *fleet) *gateway {
	f.Helper()
	server := f.server.Config()
	target, err := url.Parse(server.Host)
	if err != nil {
		f.Fatal(err)
	}
	client, err := rest.HTTPClientFor(server)
	if err != nil {
		f.Fatal(err)
	}
	next := httputil.NewSingleHostReverseProxy(target)
	next.Transport, next.FlushInterval = client.Transport, -1
	next.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	g := &gateway{}
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if answer := g.answer.Load(); answer == nil || !(*answer)(w, req) {
			next.ServeHTTP(w, req)
		}
	}))
	front.EnableHTTP2 = true
	front.StartTLS()
	f.Cleanup(func() {
		front.CloseClientConnections()
		front.Close()
		client.CloseIdleConnections()
	})
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})
	g.config = &rest.Config{Host: front.URL, TLSClientConfig: rest.TLSClientConfig{CAData: ca}}
	return g
}

// A proxy answers 404 for half a second: by itself, or because it leads to another cluster, in which there is no such
// Lease. The only candidate leads on, or soon again, also with UseExisting.
func TestNotFoundForAMoment_G8(t *testing.T) {
	t.Parallel()
	ownAnswer := func(w http.ResponseWriter, req *http.Request) bool {
		http.NotFound(w, req)
		return true
	}
	for _, tt := range []struct {
		name   string
		answer func(http.ResponseWriter, *http.Request) bool
		mode   leasehold.CreateMode
		lost   bool
	}{
		{"its own", ownAnswer, leasehold.AutoCreate, false},
		{"its own, UseExisting", ownAnswer, leasehold.UseExisting, false},
		{"another cluster's", elsewhere, leasehold.AutoCreate, true},
		{"another cluster's, UseExisting", elsewhere, leasehold.UseExisting, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, controlplane.ForTest(t))
			if tt.mode == leasehold.UseExisting {
				l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: lease}}
				if _, err := f.admin.Create(t.Context(), l, metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			g := newGateway(f)
			f.run("one", nil, leasehold.WithRESTConfig(g.config), leasehold.WithDuration(5*time.Second),
				leasehold.WithRenewInterval(200*time.Millisecond), leasehold.WithCreateMode(tt.mode))
			f.awaitLeader("one")
			before := f.get().Spec.RenewTime
			f.await("renewed", func() bool { return !f.get().Spec.RenewTime.Equal(before) })
			var asked atomic.Int64
			answer := func(w http.ResponseWriter, req *http.Request) bool {
				asked.Add(1)
				return tt.answer(w, req)
			}
			g.answer.Store(&answer)
			time.Sleep(500 * time.Millisecond)
			g.answer.Store(nil)
			if asked.Load() == 0 {
				t.Error("nothing was asked")
			}
			f.awaitLeader("one")
			time.Sleep(time.Second)
			f.awaitLeader("one")
			if lost := f.sessions.Load() > 1; lost != tt.lost {
				t.Errorf("%d sessions, want another: %v", f.sessions.Load(), tt.lost)
			}
		})
	}
}

// elsewhere passes a request on to a namespace that does not exist.
func elsewhere(_ http.ResponseWriter, req *http.Request) bool {
	before, after, _ := strings.Cut(req.URL.Path, "/namespaces/")
	_, after, _ = strings.Cut(after, "/")
	req.URL.Path = before + "/namespaces/elsewhere/" + after
	return false
}

// Beside forty leases whose shared watch brings late events, the create modes and Holders judge by what the Lease is.
func TestCreateModesBesideSharedWatch(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	c := newCrowd(f, f.server.Config())
	shared := leasehold.WithRESTConfig(c.config)
	c.lead(40)
	c.await("followed by one watch", func() bool { return c.followed("shared watch") == 40 })
	for round := range 100 {
		holder := fmt.Sprint("holder-", round)
		f.put(held(holder, time.Now()))
		for h := range leasehold.Holders(t.Context(), f.options("watcher", shared)...) {
			if h.Identity != holder {
				t.Errorf("round %d: held by %q, want %q", round, h.Identity, holder)
			}
			break
		}
		f.patch(`{"spec":{"holderIdentity":null}}`)
		one, err := leasehold.Acquire(t.Context(), f.options("one", shared,
			leasehold.WithCreateMode(leasehold.UseExisting))...)
		if err != nil {
			t.Errorf("round %d: UseExisting of a Lease that exists: %v", round, err)
		}
		if err := one.Release(); err != nil {
			t.Error(err)
		}
		if err := f.admin.Delete(t.Context(), lease, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		two, err := leasehold.Acquire(t.Context(), f.options("two", shared,
			leasehold.WithCreateMode(leasehold.CreateNew))...)
		if err != nil {
			t.Errorf("round %d: CreateNew of a Lease that was deleted: %v", round, err)
		}
		if err := two.Release(); err != nil {
			t.Error(err)
		}
		if err := f.admin.Delete(t.Context(), lease, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := c.wide.Load(); n != 1 {
		t.Errorf("%d watches of the namespace, want one", n)
	}
}

// A program that calls TryAcquire from time to time takes over from a holder that crashed, not before the lease has
// expired, and hears until then who holds it and for how long. Later it hears that its own process does.
func TestTryAcquireExpired(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	const duration = 2 * time.Second
	f.put(held("dead", time.Now()))
	renewed := time.Now()
	var texts []string
	var s leasehold.Session
	f.await("acquired", func() bool {
		var err error
		if s, err = leasehold.TryAcquire(t.Context(), f.options("one")...); err == nil {
			return true
		}
		if !errors.Is(err, leasehold.ErrHeld) {
			t.Fatal(err)
		}
		if texts = append(texts, err.Error()); len(texts) == 3 { // it is alive after all
			f.renewByHand()
			renewed = time.Now()
		}
		time.Sleep(200 * time.Millisecond)
		return false
	})
	if took := time.Since(renewed); took < duration {
		t.Errorf("acquired %v after a renewal", took)
	}
	if first := `leasehold: lease held by "dead"; free in 2s unless renewed`; texts[0] != first {
		t.Errorf("first %q, want %q", texts[0], first)
	}
	last := texts[len(texts)-1]
	if want := `leasehold: lease held by "dead", not seen to renew for `; !strings.HasPrefix(last, want) {
		t.Errorf("last %q, want %q", last, want)
	}
	if _, err := leasehold.TryAcquire(t.Context(), f.options("one")...); err == nil ||
		err.Error() != `leasehold: lease held by "one", by another session of this process` {
		t.Errorf("while it is held: %v", err)
	}
	if err := s.Release(); err != nil {
		t.Error(err)
	}
	for range leasehold.Sessions(t.Context(), f.options("one")...) {
		if _, err := leasehold.TryAcquire(t.Context(), f.options("one")...); err == nil ||
			err.Error() != `leasehold: lease held by "one", by another session of this process` {
			t.Errorf("while a loop holds it: %v", err)
		}
		break
	}
}

// Work that winds down after its context has ended may write while the lease is renewed, and hears when it is robbed.
func TestWindingDown(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	api := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(api.Close)
	var err error
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	sigterm := errors.New("SIGTERM")
	const duration = 2 * time.Second
	for s := range leasehold.Sessions(ctx, f.options("one",
		leasehold.WithDuration(duration), leasehold.WithError(&err))...) {
		client := &http.Client{Transport: s.Guard(nil)}
		write := func() error {
			resp, err := client.Get(api.URL)
			if err == nil {
				resp.Body.Close()
			}
			return err
		}
		cancel(sigterm)
		time.Sleep(2 * duration)
		if s.Err() != sigterm || s.ValidFor() == 0 || write() != nil {
			t.Errorf("winding down: %v, valid for %v, write: %v", s.Err(), s.ValidFor(), write())
		}
		f.patch(`{"spec":{"holderIdentity":"thief","acquireTime":"2026-01-01T00:00:00.000000Z"}}`)
		f.await("robbed", func() bool { return s.ValidFor() == 0 })
		if lost := write(); s.Err() != sigterm || !errors.Is(lost, leasehold.ErrLost) {
			t.Errorf("robbed: %v, write: %v", s.Err(), lost)
		}
	}
	if !errors.Is(err, sigterm) || !errors.Is(err, leasehold.ErrLost) ||
		!strings.Contains(err.Error(), `now held by "thief"`) {
		t.Errorf("err = %v, want the cause of ctx and the loss", err)
	}
	if !strings.Contains(f.log.String(), `msg="lease lost"`) {
		t.Error("the loss is not in the log")
	}
	if l := f.get(); *l.Spec.HolderIdentity != "thief" {
		t.Errorf("held by %q", *l.Spec.HolderIdentity)
	}
}

// Holders says when the lease expires, that it did, and that its holder renewed it after all.
func TestHoldersExpiry(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	const duration = 2 * time.Second
	renewed := time.Now()
	f.put(held("b", time.Now()))
	var got []string
	var expiry time.Time
	for h := range leasehold.Holders(t.Context(), f.options("watcher")...) {
		got = append(got, h.Identity)
		switch now := time.Now(); {
		case h.Identity == "" && (h != (leasehold.Holder{}) || now.Before(expiry)):
			t.Errorf("nobody at %v: %+v; expiry was %v", now, h, expiry)
		case h.Identity != "" && (h.ExpiryTime.Before(renewed.Add(duration)) || h.ExpiryTime.After(now.Add(duration))):
			t.Errorf("at %v: expires at %v, was renewed at %v", now, h.ExpiryTime, renewed)
		}
		expiry = h.ExpiryTime
		if len(got) == 4 {
			break
		}
		if h.Identity == "" {
			renewed = time.Now()
			f.renewByHand()
		}
	}
	if want := []string{"b", "", "b", ""}; !slices.Equal(got, want) {
		t.Errorf("yielded %q, want %q", got, want)
	}
}

// In a namespace that is being deleted creating is forbidden, and no Role is advised.
func TestForbiddenByTerminatingNamespace(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	core, err := corev1client.NewForConfig(f.server.Config())
	if err != nil {
		t.Fatal(err)
	}
	f.Cleanup(core.RESTClient().(*rest.RESTClient).Client.CloseIdleConnections)
	if err := core.Namespaces().Delete(t.Context(), f.ns, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	const why = "because it is being terminated"
	if _, err := leasehold.TryAcquire(t.Context(), f.options("one")...); !apierrors.IsForbidden(err) ||
		!strings.Contains(err.Error(), why) || strings.Contains(err.Error(), "Role") {
		t.Errorf("TryAcquire: %v", err)
	}
	f.run("two", nil, f.asAdmin())
	f.await("told why", func() bool { return strings.Contains(f.log.String(), why) })
	if strings.Contains(f.log.String(), "Role") {
		t.Error("a Role is advised")
	}
	c := newCLI(t)
	c.ns = f.ns
	a := c.start("create", "job")
	a.wantCode(1)
	if got := a.stderr.String(); !strings.Contains(got, why) || strings.Contains(got, "needs the rule") {
		t.Errorf("leasehold create: %s", got)
	}
}
