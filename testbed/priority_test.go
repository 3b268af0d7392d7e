package testbed_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/controlplane"
	"github.com/leasehold-go/leasehold/testbed/internal/clientgo"
)

const annotations = "leasehold-go.github.io/"

// follow returns what Holders has yielded so far, as "identity address".
func (f *fleet) follow(opts ...leasehold.Option) func() []string {
	var mu sync.Mutex
	var seen []string
	ctx, cancel := context.WithCancel(f.Context())
	done := make(chan struct{})
	f.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		opts = append(opts, leasehold.WithLease(lease), leasehold.WithNamespace(f.ns))
		for h := range leasehold.Holders(ctx, opts...) {
			mu.Lock()
			seen = append(seen, h.Identity+" "+h.Address)
			mu.Unlock()
		}
	}()
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

// The address comes and goes with its holder. One that leaves annotations alone, as client-go's elector does, has none.
func TestAdvertise(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	seen := f.follow(f.asAdmin())
	f.await("free", func() bool { return slices.Equal(seen(), []string{" "}) })
	a := f.run("a", nil, f.asAdmin(), leasehold.WithAdvertise("10.0.0.7:8080"))
	f.await("advertised", func() bool { return slices.Equal(seen(), []string{" ", "a 10.0.0.7:8080"}) })
	a.quit()
	if got := f.get().Annotations; len(got) != 0 {
		t.Errorf("after the release: %v", got)
	}
	f.run("b", nil, f.asAdmin(), leasehold.WithAdvertise("b:80"))
	f.awaitLeader("b")
	f.patch(fmt.Sprintf(`{"spec":{"holderIdentity":"client-go","acquireTime":%q}}`,
		time.Now().UTC().Format(metav1.RFC3339Micro))) // it updates the spec, and leaves annotations alone
	f.await("held by client-go", func() bool {
		all := seen()
		return all[len(all)-1] == "client-go "
	})
	if got := f.get().Annotations[annotations+"address"]; got != "b:80" {
		t.Errorf("the annotation says %q", got)
	}
}

// Three of four candidates hold the three slots, and the fourth has the one that is released.
func TestSlots(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	var mu sync.Mutex
	live := map[int]string{}
	most := 0
	held := func() string {
		mu.Lock()
		defer mu.Unlock()
		return fmt.Sprint(live)
	}
	run := func(identity string) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for s := range leasehold.Sessions(ctx, leasehold.WithLease(lease), leasehold.WithNamespace(f.ns),
				f.asAdmin(), leasehold.WithIdentity(identity), leasehold.WithSlots(3),
				leasehold.WithLogger(f.logger())) {
				mu.Lock()
				if other := live[s.Slot()]; other != "" {
					t.Errorf("slot %d is held by %s and %s", s.Slot(), other, identity)
				}
				live[s.Slot()] = identity
				most = max(most, len(live))
				mu.Unlock()
				<-s.Done()
				mu.Lock()
				delete(live, s.Slot())
				mu.Unlock()
			}
		}()
		stop = sync.OnceFunc(func() { cancel(); <-done })
		t.Cleanup(stop)
		return stop
	}
	run("a")
	f.await("a in slot 0", func() bool { return held() == "map[0:a]" })
	stop := run("b")
	f.await("b in slot 1", func() bool { return held() == "map[0:a 1:b]" })
	run("c")
	f.await("c in slot 2", func() bool { return held() == "map[0:a 1:b 2:c]" })
	run("d")
	time.Sleep(time.Second) // it watches
	began := time.Now()
	stop()
	f.await("d in slot 1", func() bool { return held() == "map[0:a 1:d 2:c]" })
	t.Logf("handed over in %v", time.Since(began))
	_, err := leasehold.TryAcquire(t.Context(), leasehold.WithLease(lease), leasehold.WithNamespace(f.ns), f.asAdmin(),
		leasehold.WithSlots(3))
	if !errors.Is(err, leasehold.ErrHeld) {
		t.Errorf("TryAcquire: %v", err)
	}
	if most != 3 {
		t.Errorf("%d at once", most)
	}
}

// The best standby registers once, is named by the release, and has the lease next, with candidates around it that know
// nothing of priorities. With WithYield the leader makes way for it.
func TestPriority(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	a := f.run("a", nil, f.asAdmin())
	f.awaitLeader("a")
	for i := range 5 {
		f.run(fmt.Sprint("none", i), nil, f.asAdmin())
	}
	f.run("low", nil, f.asAdmin(), leasehold.WithPriority(1), leasehold.WithYield())
	lowStandsBy := func() bool { return strings.HasSuffix(f.get().Annotations[annotations+"standby"], " 1 low") }
	f.await("low stands by", lowStandsBy)
	a.quit()
	f.awaitLeader("low")
	high := f.run("high", nil, f.asAdmin(), leasehold.WithPriority(2))
	f.awaitLeader("high") // low yielded
	if got := f.get().Annotations[annotations+"priority"]; got != "2" {
		t.Errorf("the holder's priority is %q", got)
	}
	f.await("low stands by again", lowStandsBy)
	high.quit()
	f.awaitLeader("low")
}

// HandOver releases the lease to the candidate that it names, of many.
func TestHandOver(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	begin := make(chan struct{})
	f.run("a", func(s leasehold.Session) {
		<-begin
		if err := s.HandOver("c7"); err != nil {
			t.Error(err)
		}
	}, f.asAdmin())
	f.awaitLeader("a")
	for i := range 10 {
		f.run(fmt.Sprint("c", i), nil, f.asAdmin())
	}
	time.Sleep(time.Second) // they watch
	began := time.Now()
	close(begin)
	f.awaitLeader("c7")
	t.Logf("handed over in %v", time.Since(began))
}

// With coordinated leader election a Lease that has a strategy is left to it, and a preferred holder is a request to
// yield.
func TestCoordinatedLeaderElection(t *testing.T) {
	t.Parallel()
	f := newFleet(t, startServer(t, controlplane.Options{NoFsync: true, CoordinatedLeaderElection: true}))
	strategy := coordinationv1.OldestEmulationVersion
	created, err := f.admin.Create(t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: lease},
		Spec: coordinationv1.LeaseSpec{Strategy: &strategy}}, metav1.CreateOptions{})
	if err != nil || created.Spec.Strategy == nil {
		t.Fatalf("the server keeps no strategy: %v, %v", created, err)
	}
	ended := make(chan error, 1)
	f.run("a", func(s leasehold.Session) {
		<-s.Done()
		ended <- s.Err()
	}, f.asAdmin())
	f.await("warned", func() bool {
		return strings.Contains(f.log.String(), "waiting until the Lease has no strategy")
	})
	time.Sleep(time.Second)
	if l, err := f.admin.Get(t.Context(), lease, metav1.GetOptions{}); err == nil && l.Spec.HolderIdentity != nil {
		t.Errorf("fought over: held by %q", *l.Spec.HolderIdentity)
	}
	if err := f.admin.Delete(t.Context(), lease, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.awaitLeader("a")
	f.patch(fmt.Sprintf(`{"spec":{"strategy":%q,"preferredHolder":"b"}}`, strategy))
	if err := <-ended; !errors.Is(err, leasehold.ErrYielded) {
		t.Errorf("the session ended with %v", err)
	}
	f.await("released", func() bool {
		holder := f.get().Spec.HolderIdentity
		return holder != nil && *holder == "" // the controller reads it unchecked
	})
}

// The controller of coordinated leader election, and client-go's candidates for it, lead undisturbed beside a candidate
// that waits: it neither claims nor registers, and has the lease once nobody coordinates it any more.
func TestBesideCoordinatedLeaderElection(t *testing.T) {
	t.Parallel()
	f := newFleet(t, startServer(t, controlplane.Options{NoFsync: true, CoordinatedLeaderElection: true}))
	cfg := f.server.Config()
	transport, err := rest.HTTPClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(transport.CloseIdleConnections)
	clients, err := kubernetes.NewForConfigAndClient(cfg, transport)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var coordinated sync.WaitGroup
	defer coordinated.Wait()
	defer cancel()
	var led atomic.Int64
	for _, version := range []string{"1.1.0", "1.0.0"} {
		identity := "coordinated-" + version
		candidate, _, err := leaderelection.NewCandidate(clients, f.ns, identity, lease, version, version,
			coordinationv1.OldestEmulationVersion)
		if err != nil {
			t.Fatal(err)
		}
		coordinated.Go(func() { candidate.Run(ctx) })
		coordinated.Go(func() {
			leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
				Lock: &resourcelock.LeaseLock{
					LeaseMeta:  metav1.ObjectMeta{Namespace: f.ns, Name: lease},
					Client:     clients.CoordinationV1(),
					LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
				},
				LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 500 * time.Millisecond,
				Coordinated: true, ReleaseOnCancel: true,
				Callbacks: leaderelection.LeaderCallbacks{
					OnStartedLeading: func(leading context.Context) {
						led.Add(1)
						f.enter(0, func() string {
							if leading.Err() != nil {
								return ""
							}
							return identity
						})
					},
					OnStoppedLeading: func() {},
				},
			})
		})
	}
	f.awaitLeader("coordinated-1.0.0")
	if l := f.get(); l.Spec.Strategy == nil || *l.Spec.Strategy != coordinationv1.OldestEmulationVersion {
		t.Fatalf("the controller has written %v", l.Spec)
	}
	f.run("ours", nil, f.asAdmin(), leasehold.WithPriority(100), leasehold.WithYield())
	f.await("warned", func() bool {
		return strings.Contains(f.log.String(), "waiting until the Lease has no strategy")
	})
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if who := f.leader(); who != "coordinated-1.0.0" {
			t.Fatalf("%q leads", who)
		}
	}
	if n := led.Load(); n != 1 {
		t.Errorf("they led %d times", n)
	}
	cancel()
	coordinated.Wait()
	if err := clients.CoordinationV1beta1().LeaseCandidates(f.ns).DeleteCollection(t.Context(), metav1.DeleteOptions{},
		metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	// kube-apiserver 1.36 crashes if it still knows a candidate when ours releases (docs/migrating.md).
	time.Sleep(2 * time.Second)
	f.await("led by ours", func() bool {
		f.patch(`{"spec":{"strategy":null,"preferredHolder":null}}`) // again where the controller was not done yet
		return f.leader() == "ours"
	})
}

// Candidates that know nothing of priorities (without one, client-go's, and two that do as kube-lease-manager and
// kubert do) take turns with those that have some: nobody leads beside another, nobody is kept out, and no term ends
// early but by a yield.
func TestMixedPriorities(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	const (
		duration = 5 * time.Second
		turn     = 400 * time.Millisecond
		away     = 3 * time.Second // with fewer of them there, those that poll find the lease free
	)
	var mu sync.Mutex
	turns := map[string]int{}
	lead := func(kind, name string, token uint64, ended func() error) {
		var over atomic.Bool
		f.enter(token, func() string {
			if over.Load() || ended() != nil {
				return ""
			}
			return name
		})
		for end := time.Now().Add(turn); time.Now().Before(end) && ended() == nil; time.Sleep(10 * time.Millisecond) {
		}
		if err := ended(); err != nil && !errors.Is(err, leasehold.ErrYielded) && ctx.Err() == nil {
			t.Errorf("%s: its term ended early: %v", name, err)
		}
		over.Store(true)
		mu.Lock()
		defer mu.Unlock()
		turns[kind]++
	}
	ours := func(kind, name string, opts ...leasehold.Option) {
		all.Go(func() {
			opts = append(opts, leasehold.WithLease(lease), leasehold.WithNamespace(f.ns), f.asAdmin(),
				leasehold.WithIdentity(name), leasehold.WithDuration(duration), leasehold.WithLogger(f.logger()))
			for ctx.Err() == nil {
				s, err := leasehold.Acquire(ctx, opts...)
				if err != nil {
					continue
				}
				lead(kind, name, s.FencingToken(), s.Err)
				if err := s.Release(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				time.Sleep(away)
			}
		})
	}
	ours("priority", "p1", leasehold.WithPriority(1))
	ours("priority", "p2", leasehold.WithPriority(2), leasehold.WithYield())
	ours("priority", "p3", leasehold.WithPriority(3))
	ours("no priority", "none")
	all.Go(func() {
		clientgo.Candidate{
			Client: leases(t, f.server.Config()), Namespace: f.ns, Lease: lease, Identity: "client-go",
			Duration: duration, Deadline: 3 * time.Second, Period: 50 * time.Millisecond, Away: away,
		}.Run(ctx, func(leading context.Context) { lead("client-go", "client-go", 0, leading.Err) })
	})
	all.Go(func() {
		k := &leaseManager{client: leases(t, f.server.Config()).Leases(f.ns), identity: "klm", duration: duration}
		for ctx.Err() == nil {
			if !k.acquire(ctx) {
				continue
			}
			lead("kube-lease-manager", k.identity, 0, func() error { return heldBy(ctx, k.client, k.identity) })
			k.release(context.WithoutCancel(ctx))
			time.Sleep(away)
		}
	})
	all.Go(func() {
		k := &kubert{client: leases(t, f.server.Config()).Leases(f.ns), identity: "kubert", duration: duration}
		for ctx.Err() == nil {
			if !k.claim(ctx) {
				continue
			}
			lead("kubert", k.identity, 0, func() error { return heldBy(ctx, k.client, k.identity) })
			k.vacate(context.WithoutCancel(ctx))
			time.Sleep(away)
		}
	})
	f.await("three turns each", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(turns) == 5 && !slices.ContainsFunc(slices.Collect(maps.Values(turns)),
			func(n int) bool { return n < 3 })
	})
	t.Logf("turns: %v", turns)
}

// A leaseManager makes the requests that kube-lease-manager 0.12 makes: without a resourceVersion, but by a field
// manager of its own. It goes by the times in the Lease and by the local clock.
type leaseManager struct {
	client   coordinationv1client.LeaseInterface
	identity string
	duration time.Duration
}

// acquire claims the lease if nobody holds it. A record that has expired is cleared, whatever it is by then.
func (k *leaseManager) acquire(ctx context.Context) bool {
	time.Sleep(50 * time.Millisecond)
	l, err := k.client.Get(ctx, lease, metav1.GetOptions{})
	if err != nil {
		return false
	}
	if s := l.Spec; s.HolderIdentity != nil {
		if s.RenewTime == nil || s.LeaseDurationSeconds == nil ||
			time.Since(s.RenewTime.Time) > time.Duration(*s.LeaseDurationSeconds)*time.Second {
			k.release(ctx)
		}
		return false
	}
	now := time.Now().UTC().Format(metav1.RFC3339Micro)
	claim := fmt.Sprintf(`{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":%q},"spec":{`+
		`"holderIdentity":%q,"leaseDurationSeconds":%d,"acquireTime":%q,"renewTime":%q}}`, lease, k.identity,
		k.duration/time.Second, now, now)
	if !k.patch(ctx, types.ApplyPatchType, claim) {
		return false
	}
	transitions := int32(0)
	if l.Spec.LeaseTransitions != nil {
		transitions = *l.Spec.LeaseTransitions
	}
	return k.patch(ctx, types.StrategicMergePatchType, fmt.Sprintf(`{"spec":{"leaseTransitions":%d}}`, transitions+1))
}

// heldBy returns why identity does not hold the lease, or nil.
func heldBy(ctx context.Context, client coordinationv1client.LeaseInterface, identity string) error {
	l, err := client.Get(context.WithoutCancel(ctx), lease, metav1.GetOptions{})
	if err == nil && (l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity != identity) {
		err = errors.New("another holds the lease")
	}
	return err
}

func (k *leaseManager) release(ctx context.Context) {
	k.patch(ctx, types.StrategicMergePatchType,
		`{"spec":{"acquireTime":null,"renewTime":null,"holderIdentity":null,"leaseDurationSeconds":null}}`)
}

func (k *leaseManager) patch(ctx context.Context, kind types.PatchType, body string) bool {
	_, err := k.client.Patch(ctx, lease, kind, []byte(body),
		metav1.PatchOptions{FieldManager: "kube-lease-manager-" + k.identity})
	return err == nil
}

// A kubert makes the requests that kubert 0.25 makes: each names the resourceVersion, and what it applies is forced. It
// goes by the times in the Lease and by the local clock.
type kubert struct {
	client   coordinationv1client.LeaseInterface
	identity string
	duration time.Duration
}

// claim claims the lease if nobody holds it, or its record has expired.
func (k *kubert) claim(ctx context.Context) bool {
	time.Sleep(50 * time.Millisecond)
	l, err := k.client.Get(ctx, lease, metav1.GetOptions{})
	if err != nil {
		return false
	}
	s, transitions := l.Spec, int32(0)
	if s.HolderIdentity != nil && s.RenewTime != nil && s.LeaseDurationSeconds != nil &&
		time.Since(s.RenewTime.Time) < time.Duration(*s.LeaseDurationSeconds)*time.Second {
		return false
	}
	if s.LeaseTransitions != nil {
		transitions = *s.LeaseTransitions
	}
	now, force := time.Now().UTC().Format(metav1.RFC3339Micro), true
	_, err = k.client.Patch(ctx, lease, types.ApplyPatchType, fmt.Appendf(nil,
		`{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"resourceVersion":%q},"spec":{`+
			`"acquireTime":%q,"renewTime":%q,"holderIdentity":%q,"leaseDurationSeconds":%d,"leaseTransitions":%d}}`,
		l.ResourceVersion, now, now, k.identity, k.duration/time.Second, transitions+1),
		metav1.PatchOptions{FieldManager: "kubert", Force: &force})
	return err == nil
}

// vacate frees the lease, unless it has changed since it was read.
func (k *kubert) vacate(ctx context.Context) {
	l, err := k.client.Get(ctx, lease, metav1.GetOptions{})
	if err != nil || l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity != k.identity {
		return
	}
	k.client.Patch(ctx, lease, types.StrategicMergePatchType, fmt.Appendf(nil,
		`{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"resourceVersion":%q},"spec":{`+
			`"acquireTime":null,"renewTime":null,"holderIdentity":null,"leaseDurationSeconds":null}}`,
		l.ResourceVersion), metav1.PatchOptions{FieldManager: "kubert"})
}
