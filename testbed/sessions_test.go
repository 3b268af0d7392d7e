package testbed_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	rbacv1client "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/controlplane"
	"github.com/leasehold-go/leasehold/testbed/internal/clientgo"
)

const lease = "reconciler"

// A fleet is the candidates for one Lease on the real API server. It watches over exclusion and
// the order of tokens.
type fleet struct {
	*testing.T
	server *controlplane.Server
	ns     string
	admin  coordinationv1client.LeaseInterface
	log    syncBuffer

	mu       sync.Mutex
	live     []func() string // the names of those who believe to lead now
	tokens   []uint64
	sessions atomic.Int64
}

func newFleet(t *testing.T, server *controlplane.Server) *fleet {
	f := &fleet{T: t, server: server, ns: server.Namespace(t)}
	f.admin = leases(t, server.Config()).Leases(f.ns)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", f.log.String())
		}
	})
	return f
}

// A syncBuffer is a buffer that many may write to.
type syncBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// logger returns one that writes to log.
func (f *fleet) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(&f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// enter notes somebody who begins to lead; live returns its name as long as it believes to.
func (f *fleet) enter(token uint64, live func() string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, other := range f.live {
		if name := other(); name != "" {
			f.Errorf("%q and %q lead together", name, live())
		}
	}
	if n := len(f.tokens); token != 0 && n > 0 && f.tokens[n-1] >= token {
		f.Errorf("token %d after %d", token, f.tokens[n-1])
	}
	if token != 0 {
		f.tokens = append(f.tokens, token)
	}
	f.live = append(f.live, live)
	f.sessions.Add(1)
}

// leader returns who leads, "" for nobody.
func (f *fleet) leader() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, live := range f.live {
		if name := live(); name != "" {
			return name
		}
	}
	return ""
}

// await waits until ok, much longer than it should take.
func (f *fleet) await(what string, ok func() bool) {
	f.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			f.Fatalf("a minute later: still not %s", what)
		}
	}
}

func (f *fleet) awaitLeader(name string) {
	f.Helper()
	f.await(fmt.Sprintf("led by %q", name), func() bool { return f.leader() == name })
}

// A candidate runs the loop on a goroutine of its own.
type candidate struct {
	stop    context.CancelFunc
	entered chan struct{} // closed when its first session begins, or it ends without one
	done    chan struct{}
	err     error // readable once done is closed
}

// run starts a candidate whose sessions last until they end, unless it is given a body.
func (f *fleet) run(name string, body func(leasehold.Session), opts ...leasehold.Option) *candidate {
	if body == nil {
		body = func(s leasehold.Session) { <-s.Done() }
	}
	ctx, cancel := context.WithCancel(f.Context())
	c := &candidate{stop: cancel, entered: make(chan struct{}), done: make(chan struct{})}
	entered := sync.OnceFunc(func() { close(c.entered) })
	opts = append([]leasehold.Option{
		leasehold.WithLease(lease), leasehold.WithNamespace(f.ns), leasehold.WithIdentity(name),
		leasehold.WithError(&c.err),
		leasehold.WithLogger(f.logger()),
	}, opts...)
	go func() {
		defer close(c.done)
		defer entered()
		for s := range leasehold.Sessions(ctx, opts...) {
			f.enter(s.FencingToken(), func() string {
				if s.Err() != nil {
					return ""
				}
				return name
			})
			entered()
			body(s)
		}
	}()
	f.Cleanup(c.quit)
	return c
}

func (c *candidate) quit() {
	c.stop()
	<-c.done
}

// as connects as the admin.
func (f *fleet) asAdmin() leasehold.Option { return leasehold.WithRESTConfig(f.server.Config()) }

func (f *fleet) get() *coordinationv1.Lease {
	f.Helper()
	l, err := f.admin.Get(f.Context(), lease, metav1.GetOptions{})
	if err != nil {
		f.Fatal(err)
	}
	return l
}

// The main path, G1, G5 and G7: the lease goes from one candidate to the next when it is released. It lasts so much
// longer than await that nobody leads who was not told.
func TestHandover(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	long := leasehold.WithDuration(time.Hour)
	one := f.run("one", nil, f.asAdmin(), long)
	f.awaitLeader("one")
	two := f.run("two", nil, f.asAdmin(), long)
	three := f.run("three", nil, f.asAdmin(), long)
	time.Sleep(time.Second) // they watch
	one.quit()
	f.await("led by another", func() bool { return f.leader() == "two" || f.leader() == "three" })
	two.quit()
	f.awaitLeader("three")
	three.quit()
	if l := f.get(); l.Spec.HolderIdentity != nil || l.Spec.RenewTime != nil || l.Spec.AcquireTime != nil ||
		l.Spec.LeaseDurationSeconds != nil {
		t.Errorf("after the release: %v", l.Spec)
	}
}

// The wire format of section 4 of the design, as the API server gets it and keeps it.
func TestWire(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	cfg, sent := f.server.Config(), &wire{}
	cfg.Wrap(sent.wrap)
	opts := []leasehold.Option{leasehold.WithRESTConfig(cfg), leasehold.WithRenewInterval(time.Second)}
	before, err := f.admin.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := f.run("one", nil, opts...)
	f.awaitLeader("one")
	for round := range 3 {
		l := f.get()
		if *l.Spec.HolderIdentity != "one" || *l.Spec.LeaseDurationSeconds != 15 ||
			int(*l.Spec.LeaseTransitions) != round ||
			l.Spec.AcquireTime == nil || l.Spec.RenewTime == nil {
			t.Fatalf("held: %v", l.Spec)
		}
		if _, err := f.admin.Patch(t.Context(), lease, types.MergePatchType,
			[]byte(`{"metadata":{"labels":{"team":"storage"}}}`),
			metav1.PatchOptions{FieldManager: "kubectl"}); err != nil {
			t.Fatal(err)
		}
		if n := len(f.get().ManagedFields); n > 4 {
			t.Errorf("round %d: %d field managers", round, n)
		}
		renewals := len(sent.of("renewal"))
		f.await("renewed", func() bool { return len(sent.of("renewal")) > renewals })
		c.quit()
		c = f.run("one", nil, opts...)
		f.awaitLeader("one")
		if l := f.get(); l.Labels["team"] != "storage" {
			t.Errorf("labels %v", l.Labels)
		}
	}
	c.quit()
	last := f.get()
	for _, p := range sent.of("claim") {
		if p.Metadata.UID != last.UID {
			t.Errorf("claim of the Lease with the uid %q: %s", last.UID, p.body)
		}
	}
	version := f.versions(before.ResourceVersion, last.ResourceVersion)
	for _, kind := range []string{"claim", "renewal", "release"} {
		patches := sent.of(kind)
		if len(patches) == 0 {
			t.Errorf("no patch is a %s", kind)
		}
		for _, p := range patches {
			if i := slices.Index(version, p.made); i < 1 || p.Metadata.ResourceVersion != version[i-1] {
				t.Errorf("%s that made the Lease the last of its versions %v: %s", kind, version[:i+1], p.body)
			}
		}
	}
}

// versions returns those that the Lease had after one, up to another.
func (f *fleet) versions(after, last string) []string {
	f.Helper()
	w, err := f.admin.Watch(f.Context(), metav1.ListOptions{ResourceVersion: after})
	if err != nil {
		f.Fatal(err)
	}
	defer w.Stop()
	var versions []string
	for event := range w.ResultChan() {
		l, ok := event.Object.(*coordinationv1.Lease)
		if !ok {
			f.Fatal(apierrors.FromObject(event.Object))
		}
		if versions = append(versions, l.ResourceVersion); l.ResourceVersion == last {
			return versions
		}
	}
	f.Fatalf("the watch ended after the versions %v", versions)
	return nil
}

// A wire keeps the patches that the API server took.
type wire struct {
	mu      sync.Mutex
	patches []patch
}

// A patch is what was sent to change the Lease.
type patch struct {
	kind     string // claim, renewal or release
	body     []byte
	made     string // the version of the Lease that came of it
	Metadata struct {
		UID             types.UID
		ResourceVersion string
	}
	Spec map[string]any
}

func (w *wire) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		if req.Method != http.MethodPatch {
			return next.RoundTrip(req)
		}
		var p patch
		var err error
		if p.body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
		req = req.Clone(req.Context())
		req.Body = io.NopCloser(bytes.NewReader(p.body))
		resp, err := next.RoundTrip(req)
		if err != nil || resp.StatusCode >= 300 {
			return resp, err
		}
		answer, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		resp.Body = io.NopCloser(bytes.NewReader(answer))
		l, err := runtime.Decode(scheme.Codecs.UniversalDeserializer(), answer)
		if err != nil {
			return nil, err
		}
		p.made = l.(*coordinationv1.Lease).ResourceVersion
		if err := json.Unmarshal(p.body, &p); err != nil {
			return nil, err
		}
		switch holder, holds := p.Spec["holderIdentity"]; {
		case req.Header.Get("Content-Type") == string(types.ApplyYAMLPatchType):
			p.kind = "claim"
		case holds && holder == nil:
			p.kind = "release"
		default:
			p.kind = "renewal"
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.patches = append(w.patches, p)
		return resp, nil
	})
}

// A roundTripper is an http.RoundTripper that is a function.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// of returns the patches of a kind.
func (w *wire) of(kind string) []patch {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.patches), func(p patch) bool { return p.kind != kind })
}

// G4: a takeover and a deletion end the session at once. The former leader then creates the Lease
// again.
func TestPromptLoss_G4(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	var lost []error
	f.run("one", func(s leasehold.Session) {
		<-s.Done()
		f.mu.Lock()
		defer f.mu.Unlock()
		lost = append(lost, s.Err())
	}, f.asAdmin(), leasehold.WithDuration(time.Hour)) // nothing expires here
	f.awaitLeader("one")
	if err := f.admin.Delete(t.Context(), lease, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.await("led again", func() bool { return f.sessions.Load() == 2 })
	patch := `{"spec":{"holderIdentity":"thief","acquireTime":"2026-01-01T00:00:00.000000Z"}}`
	if _, err := f.admin.Patch(t.Context(), lease, types.MergePatchType, []byte(patch),
		metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	f.awaitLeader("")
	f.await("lost", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(lost) == 2 })
	for i, want := range []string{"lease lost: the Lease was deleted", `lease lost: now held by "thief"`} {
		if !errors.Is(lost[i], leasehold.ErrLost) || lost[i].Error() != want {
			t.Errorf("lost: %v, want %s", lost[i], want)
		}
	}
	if l := f.get(); *l.Spec.HolderIdentity != "thief" {
		t.Errorf("held by %q", *l.Spec.HolderIdentity)
	}
}

// startServer starts an API server of the test's own.
func startServer(t *testing.T, o controlplane.Options) *controlplane.Server {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: needs a real API server")
	}
	server, err := controlplane.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// An API server that is killed or stops for a while, and comes back within the renew deadline, costs nobody the lease.
func TestOutage(t *testing.T) {
	t.Parallel()
	server := startServer(t, controlplane.Options{NoFsync: true})
	f := newFleet(t, server)
	f.run("one", nil, f.asAdmin(), leasehold.WithDuration(30*time.Second))
	f.awaitLeader("one")
	f.run("two", nil, f.asAdmin(), leasehold.WithDuration(30*time.Second))
	for _, outage := range []struct{ begin, end func() error }{
		{server.Kill, func() error { return server.Restart(t.Context()) }},
		{server.Pause, server.Resume},
	} {
		if err := outage.begin(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if err := outage.end(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(7 * time.Second) // a renewal and a watch event at least
		if name := f.leader(); name != "one" || f.sessions.Load() != 1 {
			t.Errorf("after an outage %q leads in session %d", name, f.sessions.Load())
		}
	}
}

// An API server that is down for longer than the renew deadline costs the leader its session. A candidate leads once
// the server is back.
func TestOutageTooLong(t *testing.T) {
	t.Parallel()
	server := startServer(t, controlplane.Options{NoFsync: true})
	f := newFleet(t, server)
	f.run("one", nil, f.asAdmin(), leasehold.WithDuration(8*time.Second))
	f.awaitLeader("one")
	f.run("two", nil, f.asAdmin(), leasehold.WithDuration(8*time.Second))
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	f.awaitLeader("")
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.await("led again", func() bool { return f.leader() != "" })
}

// G9: a connection that stops carrying anything, while new ones work, costs nothing.
func TestBlackHole_G9(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	cfg := f.server.Config()
	hole := &blackHole{}
	cfg.Dial = hole.dial
	f.run("one", nil, leasehold.WithRESTConfig(cfg))
	f.awaitLeader("one")
	for range 2 {
		before := f.get().Spec.RenewTime.Time
		hole.swallow()
		time.Sleep(12*time.Second + time.Second) // the renew deadline
		if f.leader() != "one" || f.sessions.Load() != 1 {
			t.Fatalf("%q leads in session %d", f.leader(), f.sessions.Load())
		}
		if !f.get().Spec.RenewTime.After(before) {
			t.Error("not renewed")
		}
	}
	if n := hole.dials.Load(); n < 3 || n > 8 {
		t.Errorf("%d connections, want one more each time", n)
	}
}

// A blackHole is a network in which the connections of now can be made to lead nowhere.
type blackHole struct {
	dials atomic.Int64
	mu    sync.Mutex
	conns []*swallowed
}

func (b *blackHole) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	b.dials.Add(1)
	b.mu.Lock()
	defer b.mu.Unlock()
	c := &swallowed{Conn: conn, closed: make(chan struct{})}
	b.conns = append(b.conns, c)
	return c, nil
}

func (b *blackHole) swallow() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		c.gone.Store(true)
	}
}

// A swallowed connection takes what is written, and never brings anything.
type swallowed struct {
	net.Conn
	gone   atomic.Bool
	once   sync.Once
	closed chan struct{}
}

func (c *swallowed) Write(p []byte) (int, error) {
	if c.gone.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *swallowed) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.gone.Load() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *swallowed) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// G11 and G12: the rights that are missing are named, those that are enough are these, and without
// the right to watch the lease is polled.
func TestRights(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	rbac, err := rbacv1client.NewForConfig(f.server.Config())
	if err != nil {
		t.Fatal(err)
	}
	f.Cleanup(rbac.RESTClient().(*rest.RESTClient).Client.CloseIdleConnections)
	user := "someone-in-" + f.ns
	f.run("one", nil, leasehold.WithRESTConfig(f.server.UserConfig(user)), leasehold.WithDuration(5*time.Second))
	grant := func(verbs ...string) {
		role := &rbacv1.Role{
			ObjectMeta: metav1.ObjectMeta{Name: strings.Join(verbs, "-")},
			Rules: []rbacv1.PolicyRule{{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"},
				ResourceNames: []string{lease}, Verbs: verbs}},
		}
		if verbs[0] == "create" {
			role.Rules[0].ResourceNames = nil
		}
		if _, err := rbac.Roles(f.ns).Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		binding := &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: role.Name},
			Subjects:   []rbacv1.Subject{{Kind: "User", APIGroup: "rbac.authorization.k8s.io", Name: user}},
			RoleRef:    rbacv1.RoleRef{Kind: "Role", APIGroup: "rbac.authorization.k8s.io", Name: role.Name},
		}
		if _, err := rbac.RoleBindings(f.ns).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, verb := range []string{"get", "create", "patch", "watch"} {
		names := ` resourceNames: [\"reconciler\"],`
		if verb == "create" {
			names = ""
		}
		rule := fmt.Sprintf(`a Role in namespace \"%s\" needs the rule {apiGroups: [\"coordination.k8s.io\"], `+
			`resources: [\"leases\"],%s verbs: [\"%s\"]}`, f.ns, names, verb)
		logged := func() bool { return strings.Contains(f.log.String(), rule) }
		switch verb {
		case "patch":
			// Creating the Lease needed no patch; the first renewal does.
		case "watch":
			f.awaitLeader("one") // by polling
		}
		f.await("told that it needs "+rule, logged)
		grant(verb)
	}
	f.awaitLeader("one")
}

// A fleet in which client-go's electors compete too: they take turns and never lead together.
func TestMixedFleet(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	ctx, cancel := context.WithCancel(t.Context())
	var electors sync.WaitGroup
	defer electors.Wait()
	defer cancel()
	var turns [2]atomic.Int64
	elect := func(name string) {
		clientgo.Candidate{
			Client: leases(t, f.server.Config()), Namespace: f.ns, Lease: lease, Identity: name,
			Duration: 3 * time.Second, Deadline: 2 * time.Second, Period: 200 * time.Millisecond,
		}.Run(ctx, func(leading context.Context) {
			var over atomic.Bool
			f.enter(0, func() string {
				if over.Load() || leading.Err() != nil {
					return ""
				}
				return name
			})
			turns[0].Add(1)
			time.Sleep(500 * time.Millisecond)
			over.Store(true)
		})
	}
	for _, name := range []string{"client-go one", "client-go two"} {
		electors.Go(func() { elect(name) })
	}
	for _, name := range []string{"one", "two"} {
		electors.Go(func() {
			for ctx.Err() == nil {
				turn := f.run(name, func(s leasehold.Session) {
					turns[1].Add(1)
					time.Sleep(500 * time.Millisecond)
				}, f.asAdmin(), leasehold.WithDuration(3*time.Second))
				<-turn.entered
				turn.quit()
				// Theirs look for a free lease every 200 to 440 ms; ours know at once, and would
				// pass it to each other and never pause.
				time.Sleep(time.Second)
			}
		})
	}
	f.await("three turns each", func() bool { return turns[0].Load() >= 3 && turns[1].Load() >= 3 })
}
