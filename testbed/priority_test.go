package testbed_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/controlplane"
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
	server, err := controlplane.Start(t.Context(), controlplane.Options{NoFsync: true, CoordinatedLeaderElection: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	f := newFleet(t, server)
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
	f.await("released", func() bool { return f.get().Spec.HolderIdentity == nil })
}
