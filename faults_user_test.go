package leasehold

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v4"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold/leasetest"
)

// A misdeed is what the program's code does when leasehold calls it.
type misdeed struct {
	name string
	do   func(until <-chan struct{})
}

var misdeeds = []misdeed{
	{"panics", func(<-chan struct{}) { panic("the program's") }},
	{"exits its goroutine", func(<-chan struct{}) { runtime.Goexit() }},
	{"blocks", func(until <-chan struct{}) { <-until }},
}

// A hostileHandler is a slog.Handler that misbehaves at the line with msg.
type hostileHandler struct {
	slog.Handler
	msg string
	do  func()
}

func (h hostileHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h hostileHandler) Handle(_ context.Context, r slog.Record) error {
	if r.Message == h.msg {
		h.do()
	}
	return nil
}

// A hostileBackOff misbehaves whenever it is asked.
type hostileBackOff struct{ do func() }

func (b hostileBackOff) NextBackOff() time.Duration { b.do(); return time.Second }
func (b hostileBackOff) Reset()                     { b.do() }

// A hostileRecorder is an event recorder that misbehaves.
type hostileRecorder struct {
	recorderFunc
	do func()
}

func (r hostileRecorder) Eventf(apiruntime.Object, string, string, string, ...any) { r.do() }

// Whatever the program's code does, wherever it is called: renewals go on as long as the body runs, the lease is free
// once the loop was left, a panic comes back on the loop's goroutine, and nothing is left.
func TestNoHostage_G13(t *testing.T) {
	for _, where := range []struct {
		name   string
		option func(do func()) Option
	}{
		{"logger", func(do func()) Option {
			return WithLogger(slog.New(hostileHandler{slog.DiscardHandler, "lease acquired", do}))
		}},
		{"logger at the release", func(do func()) Option {
			return WithLogger(slog.New(hostileHandler{slog.DiscardHandler, "lease released", do}))
		}},
		{"event recorder", func(do func()) Option { return WithEventRecorder(hostileRecorder{do: do}) }},
		{"BackOff", func(do func()) Option {
			first := true // newOptions tries the function
			return WithBackOff(func() backoff.BackOff {
				defer func() { first = false }()
				if first {
					return backoff.NewConstantBackOff(time.Second)
				}
				return hostileBackOff{do}
			})
		}},
	} {
		for _, what := range misdeeds {
			t.Run(where.name+" "+what.name, func(t *testing.T) {
				inWorld(t, func(w *world) { w.hostage(what, where.option) })
			})
		}
	}
}

// hostage leads for a while with an option whose code misbehaves, and leaves the loop.
func (w *world) hostage(what misdeed, option func(do func()) Option) {
	until := make(chan struct{})
	var recovered any
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(w.Context())
	defer cancel()
	go func() {
		defer close(done)
		defer func() { recovered = recover() }()
		var failed atomic.Bool
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "patch" && !failed.Swap(true) { // one renewal fails, so that a BackOff is asked
				return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
			}
			return leasetest.Fault{}
		})
		for s := range Sessions(ctx, w.options("a", option(func() { what.do(until) }))...) {
			end := time.After(2 * D)
			select {
			case <-end:
			case <-s.Done():
				if errors.Is(s.Err(), ErrLost) {
					w.Errorf("lost: %v", s.Err())
				}
				time.Sleep(2 * D) // the body winds down slowly
			}
			if s.ValidFor() < R-I-eps-time.Second {
				w.Errorf("after %v: valid for %v", 2*D, s.ValidFor())
			}
			break
		}
	}()
	w.sleep(5 * D)
	select {
	case <-done:
	default:
		w.Error("the loop has not ended")
	}
	if w.holder() != "" {
		w.Errorf("%q holds the lease after the loop", w.holder())
	}
	n := w.srv.Client("a").Requests()
	w.sleep(5 * D)
	if more := w.srv.Client("a").Requests() - n; more != 0 {
		w.Errorf("%d requests after the loop", more)
	}
	if want := what.name == "panics"; (recovered != nil) != want || want && recovered != "the program's" {
		w.Errorf("recovered %v", recovered)
	}
	close(until)
	<-done
	synctest.Wait()
}

// Acquire leaves nothing behind either when the logger panics as the lease is acquired.
func TestNoHostageOfAcquire_G13(t *testing.T) {
	for _, what := range misdeeds {
		t.Run(what.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				until := make(chan struct{})
				logger := slog.New(hostileHandler{slog.DiscardHandler, "lease acquired", func() { what.do(until) }})
				var recovered any
				func() {
					defer func() { recovered = recover() }()
					s, err := Acquire(w.Context(), w.options("a", WithLogger(logger))...)
					if err != nil {
						return
					}
					w.sleep(2 * D)
					if w.holder() != "a" {
						w.Errorf("%q holds the lease of a session that goes on", w.holder())
					}
					s.Release()
				}()
				if w.holder() != "" {
					w.Errorf("%q holds the lease at the end", w.holder())
				}
				n := w.srv.Client("a").Requests()
				w.sleep(2 * D)
				if more := w.srv.Client("a").Requests() - n; more != 0 {
					w.Errorf("%d requests at the end", more)
				}
				if want := what.name == "panics"; (recovered != nil) != want {
					w.Errorf("recovered %v", recovered)
				}
				close(until)
			})
		})
	}
}

// A client that does not heed its contexts: the lease is renewed by the next try, and released, although one request
// never returns.
func TestNoHostageOfTransport_G13(t *testing.T) {
	for _, what := range misdeeds {
		t.Run(what.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				until := make(chan struct{})
				var met atomic.Bool
				w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					if r.Verb == "patch" && !met.Swap(true) {
						what.do(until)
					}
					return leasetest.Fault{}
				})
				var recovered any
				var lost error
				done := make(chan struct{})
				go func() {
					defer close(done)
					defer func() { recovered = recover() }()
					for s := range Sessions(w.Context(), w.options("a")...) {
						time.Sleep(2 * D)
						if err := s.Err(); errors.Is(err, ErrLost) {
							lost = err
						}
						break
					}
				}()
				w.sleep(3 * D)
				select {
				case <-done:
				default:
					w.Error("the loop has not ended")
				}
				if lost != nil || w.holder() != "" {
					w.Errorf("lost: %v; held by %q after the loop", lost, w.holder())
				}
				if want := what.name == "panics"; (recovered != nil) != want {
					w.Errorf("recovered %v", recovered)
				}
				close(until)
				<-done
			})
		})
	}
}

// leadOver leads over the network for a while, with a connection whose code misbehaves once armed. The lease is kept as
// long as the body runs, and free after the loop, which ends with the panic, if there was one.
func (s *apiServer) leadOver(t *testing.T, config *rest.Config, what misdeed, armed *atomic.Bool, opts ...Option) {
	recovered := func() (value any) {
		defer func() { value = recover() }()
		for session := range Sessions(t.Context(), append([]Option{WithLease("x"), WithNamespace("default"),
			WithRESTConfig(config), unlogged, inVirtualTime}, opts...)...) {
			time.Sleep(I / 2)
			armed.Store(true)
			select {
			case <-session.Done():
			case <-time.After(2 * D):
			}
			time.Sleep(D)
			if session.ValidFor() == 0 {
				t.Errorf("the lease was lost: %v", session.Err())
			}
			break
		}
		return nil
	}()
	if armed.Load() {
		t.Error("the code was not called")
	}
	if want := what.name == "panics"; (recovered != nil) != want || want && recovered != "the program's" {
		t.Errorf("recovered %v", recovered)
	}
	if l := s.leases.Lease("default", "x"); l == nil || l.Spec.HolderIdentity != nil {
		t.Errorf("left: %+v", l)
	}
}

// The program's code panics or exits its goroutine when it dials, which is when the connection has gone dead.
func TestNoHostageOfDialler_G13(t *testing.T) {
	for _, what := range misdeeds[:2] {
		t.Run(what.name, func(t *testing.T) {
			overNetwork(t, 2*time.Millisecond, func(t *testing.T, s *apiServer) {
				var armed atomic.Bool
				config := s.config()
				config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
					if armed.Swap(false) {
						what.do(nil)
					}
					return s.Dial(ctx, network, address)
				}
				time.AfterFunc(D, s.Kill)
				s.leadOver(t, config, what, &armed)
			})
		})
	}
}

// A hostileBody misbehaves when something is read of it.
type hostileBody struct {
	io.ReadCloser
	do func()
}

func (b hostileBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.do()
	return n, err
}

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// The program's transport panics or exits its goroutine when a watch is read, its own one or the shared one.
func TestNoHostageOfWatch_G13(t *testing.T) {
	for _, what := range misdeeds[:2] {
		for _, shared := range []int{1, 100} {
			t.Run(fmt.Sprintf("%s, shared from %d", what.name, shared), func(t *testing.T) {
				overNetwork(t, 2*time.Millisecond, func(t *testing.T, s *apiServer) {
					var armed atomic.Bool
					config := s.config()
					config.WrapTransport = func(next http.RoundTripper) http.RoundTripper {
						return roundTripFunc(func(req *http.Request) (*http.Response, error) {
							resp, err := next.RoundTrip(req)
							if err == nil && req.URL.Query().Has("watch") {
								resp.Body = hostileBody{resp.Body, func() {
									if armed.Swap(false) {
										what.do(nil)
									}
								}}
							}
							return resp, err
						})
					}
					s.leadOver(t, config, what, &armed, WithSharedFrom(shared))
				})
			})
		}
	}
}

// The function of WithOverrun panics or exits its goroutine: the loop goes on, or ends with the panic.
func TestNoHostageOfOverrun_G13(t *testing.T) {
	for _, what := range misdeeds[:2] {
		t.Run(what.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				var overran atomic.Bool
				var recovered any
				func() {
					defer func() { recovered = recover() }()
					for s := range Sessions(w.Context(),
						w.options("a", WithOverrun(func(Session) { overran.Store(true); what.do(nil) }))...) {
						w.steal("thief")
						<-s.Done()
						time.Sleep(2 * D)
						break
					}
				}()
				if want := what.name == "panics"; !overran.Load() || (recovered != nil) != want {
					w.Errorf("overran: %v, recovered %v", overran.Load(), recovered)
				}
			})
		})
	}
}

// A campaign that the function of WithBackOff keeps from beginning, by a panic, leaves no client behind.
func TestCampaignThatPanics_G10(t *testing.T) {
	inWorld(t, func(w *world) {
		for _, calls := range []int{1, 2, 3, 4, 5} { // that return; the first is for the options
			func() {
				defer func() {
					if r := recover(); r != "the program's" {
						t.Errorf("recovered %v", r)
					}
				}()
				returned := 0
				Acquire(w.Context(), w.options("a", WithBackOff(func() backoff.BackOff {
					if returned++; returned > calls {
						panic("the program's")
					}
					return backoff.NewConstantBackOff(time.Second)
				}))...)
			}()
			clients.Lock()
			if n := len(clients.inUse); n != 0 {
				t.Errorf("after a panic in call %d: %d clients are in use", calls+1, n)
			}
			clients.Unlock()
		}
	})
}

// A panickingClient panics when it is asked to watch, once it is told to.
type panickingClient struct {
	*leasetest.Client
	panics atomic.Bool
}

type panickingLeases struct {
	Leases
	client *panickingClient
}

func (c *panickingClient) Leases(namespace string) panickingLeases {
	return panickingLeases{c.Client.Leases(namespace), c}
}

func (l panickingLeases) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	if l.client.panics.Load() {
		panic("the program's")
	}
	return l.Leases.Watch(ctx, opts)
}

// A shared watch panics again when a second campaign has joined it: that one ends too, although the first, whose body
// winds down, was told before.
func TestSharedWatchPanicsAgain_G13(t *testing.T) {
	inWorld(t, func(w *world) {
		client := &panickingClient{Client: w.srv.Client("a")}
		lead := func(lease string, body func(Session)) (recovered any) {
			defer func() { recovered = recover() }()
			for s := range Sessions(w.Context(),
				w.options("a", WithLease(lease), WithClient(client), WithSharedFrom(1))...) {
				body(s)
			}
			return nil
		}
		first := make(chan any, 1)
		go func() {
			first <- lead("first", func(s Session) {
				w.sleep(I)
				client.panics.Store(true)
				client.CloseWatches(nil)
				<-s.Done()
				w.sleep(D)
			})
		}()
		w.sleep(2 * I)
		began := time.Now()
		second := lead("second", func(s Session) {
			select {
			case <-s.Done():
			case <-time.After(D):
			}
			panic("the second campaign goes on")
		})
		if took := time.Since(began); second != "the program's" || took > I {
			t.Errorf("the second loop ended with %v after %v", second, took)
		}
		if r := <-first; r != "the program's" {
			t.Errorf("the first loop ended with %v", r)
		}
	})
}

// A hostileError is a client's error that misbehaves when it is asked what it is.
type hostileError struct{ errorIs, as, unwrap, text func() }

func (e hostileError) Error() string { e.text(); return "odd" }
func (e hostileError) Is(error) bool { e.errorIs(); return false }
func (e hostileError) As(any) bool   { e.as(); return false }
func (e hostileError) Unwrap() error { e.unwrap(); return nil }

// Whatever an error of a client does when it is asked what it is, the lease is kept or given back, and it is followed
// on.
func TestHostileErrors_G13(t *testing.T) {
	for _, verb := range []string{"patch", "get", "watch", "shared watch"} {
		for _, method := range []string{"Is", "As", "Unwrap", "Error"} {
			for _, what := range misdeeds {
				t.Run(verb+" "+method+" "+what.name, func(t *testing.T) {
					inWorld(t, func(w *world) { w.hostileError(verb, method, what) })
				})
			}
		}
	}
}

// hostileError leads for a while during which one request fails with an error that misbehaves, and leaves the loop.
func (w *world) hostileError(verb, method string, what misdeed) {
	until := make(chan struct{})
	nothing := func() {}
	err := hostileError{nothing, nothing, nothing, nothing}
	*map[string]*func(){"Is": &err.errorIs, "As": &err.as, "Unwrap": &err.unwrap, "Error": &err.text}[method] =
		func() { what.do(until) }
	panics := what.name == "panics" && method != "Error" // fmt recovers a panic of Error
	var opts []Option
	if verb == "shared watch" {
		verb, opts = "watch", append(opts, WithSharedFrom(1))
	}
	var armed, failed, again atomic.Bool
	w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
		switch {
		case r.Verb != verb:
		case armed.Swap(false):
			failed.Store(true)
			return leasetest.Fault{Err: err}
		case failed.Load():
			again.Store(true)
		}
		return leasetest.Fault{}
	})
	var recovered any
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { recovered = recover() }()
		for s := range Sessions(w.Context(), w.options("a", opts...)...) {
			time.Sleep(I)
			armed.Store(true)
			w.srv.Client("a").CloseWatches(nil)
			select {
			case <-time.After(3 * D):
			case <-s.Done():
			}
			if !panics && s.Err() != nil {
				w.Errorf("the session ended: %v", s.Err())
			}
			break
		}
	}()
	w.sleep(5 * D)
	select {
	case <-done:
	default:
		w.Error("the loop has not ended")
	}
	if w.holder() != "" {
		w.Errorf("%q holds the lease after the loop", w.holder())
	}
	switch {
	case !failed.Load():
		w.Error("no request failed")
	case panics && recovered != "the program's":
		w.Errorf("recovered %v", recovered)
	case !panics && !again.Load():
		w.Errorf("no %s after the one that failed", verb)
	}
	close(until)
	<-done
	synctest.Wait()
}

// An examined error answers users as the program's own does.
func TestExaminedErrors(t *testing.T) {
	cause := leasetest.ServiceUnavailable()
	err := examined(fmt.Errorf("patch: %w", errors.Join(cause, io.EOF, context.Canceled)))
	var status *apierrors.StatusError
	if !errors.Is(err, io.EOF) || !errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		!errors.As(err, &status) || status != cause || !apierrors.IsServiceUnavailable(err) {
		t.Error(err)
	}
	if lost := lostBecause(expired, "late"); examined(lost) != lost || examined(nil) != nil {
		t.Error("our own errors are not as they were")
	}
	if err := examined(io.EOF); answered(err) || errors.Is(err, ErrLost) || errors.As(err, new(groupFault)) {
		t.Error(err)
	}
}

// emptyLeases are those of a client that makes its requests, but returns neither a result nor an error of one method.
type emptyLeases struct {
	Leases
	method string
}

func (l emptyLeases) Get(ctx context.Context, name string, opts metav1.GetOptions) (*coordinationv1.Lease, error) {
	lease, err := l.Leases.Get(ctx, name, opts)
	return orNothing(l, "Get", lease, err)
}

func (l emptyLeases) Create(
	ctx context.Context, lease *coordinationv1.Lease, opts metav1.CreateOptions,
) (*coordinationv1.Lease, error) {
	lease, err := l.Leases.Create(ctx, lease, opts)
	return orNothing(l, "Create", lease, err)
}

func (l emptyLeases) Patch(
	ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, sub ...string,
) (*coordinationv1.Lease, error) {
	lease, err := l.Leases.Patch(ctx, name, pt, data, opts, sub...)
	return orNothing(l, "Patch", lease, err)
}

func (l emptyLeases) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	w, err := l.Leases.Watch(ctx, opts)
	if l.method == "Watch" {
		return nil, err
	}
	return w, err
}

func (l emptyLeases) List(ctx context.Context, opts metav1.ListOptions) (*coordinationv1.LeaseList, error) {
	list, err := l.Leases.(lister).List(ctx, opts)
	return orNothing(l, "List", list, err)
}

func orNothing[T any](l emptyLeases, method string, result *T, err error) (*T, error) {
	if l.method == method {
		return nil, err
	}
	return result, err
}

func withEmpty(method string) Option {
	return func(o *options) {
		o.hooks.wrap = func(l Leases) Leases { return emptyLeases{l, method} }
	}
}

// A client that returns neither a result nor an error: the request has failed, and its outcome is unknown. What the
// Lease says tells what became of a write.
func TestClientReturnsNothing(t *testing.T) {
	for _, method := range []string{"Get", "Create", "Patch", "Watch"} {
		t.Run(method, func(t *testing.T) {
			inWorld(t, func(w *world) {
				want := 1 // sessions
				if method == "Get" {
					want = 0
					w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
				}
				a := w.run("a", nil, withEmpty(method))
				w.sleep(2 * D)
				if leads := w.leads() == "a"; leads != (want == 1) || w.count() != want {
					t.Errorf("leads: %v, in %d sessions", leads, w.count())
				}
				if w.logged("the client returned neither a result nor an error") == 0 {
					t.Error("not logged")
				}
				a.quit()
				if w.holder() != "" || a.err != context.Canceled {
					t.Errorf("ended with %v, held by %q", a.err, w.holder())
				}
			})
		})
	}
}

// Requests about the Leases of a group fail likewise: a Lease that was not returned is not taken for one that does not
// exist.
func TestClientReturnsNothingOfGroup(t *testing.T) {
	for method, request := range map[string]func(context.Context, *groupClient) error{
		"Get": func(ctx context.Context, g *groupClient) error {
			_, err := g.get(ctx, "get table", name)
			return err
		},
		"List": func(ctx context.Context, g *groupClient) error {
			_, _, err := g.list(ctx)
			return err
		},
		"Create": func(ctx context.Context, g *groupClient) error {
			_, err := g.create(ctx, "create table", &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "new"}})
			return err
		},
		"Patch": func(ctx context.Context, g *groupClient) error {
			r := g.campaign.store.latest().record
			_, err := g.patch(ctx, "table", name, r, map[string]*string{"a": nil}, nil)
			return err
		},
	} {
		t.Run(method, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.run("a", nil).quit()
				for _, opts := range [][]Option{nil, {withEmpty(method)}} {
					c := idleCampaign(w, opts...)
					if _, err := c.reflector.read(w.Context()); err != nil && opts == nil {
						t.Fatal(err)
					}
					err := request(w.Context(), &groupClient{campaign: c, group: "group"})
					if errors.Is(err, errNoResult) != (opts != nil) || opts == nil && err != nil {
						t.Errorf("with %d options: %v", len(opts), err)
					}
					w.srv.Delete(ns, "new")
				}
			})
		})
	}
}

// bareClient has no Leases.
type bareClient struct{}

func (bareClient) Leases(string) Leases { return nil }

func TestClientWithoutLeases(t *testing.T) {
	_, err := Acquire(t.Context(), WithLease(name), WithNamespace(ns), WithClient(bareClient{}))
	const want = `leasehold: no usable client configuration: the client has no Leases in namespace "default"`
	if err == nil || err.Error() != want {
		t.Errorf("Acquire() = %v, want %s", err, want)
	}
}
