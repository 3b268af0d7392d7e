package testbed_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/controlplane"
)

// options are those of a candidate of that name, as the admin.
func (f *fleet) options(name string, opts ...leasehold.Option) []leasehold.Option {
	return append([]leasehold.Option{
		leasehold.WithLease(lease), leasehold.WithNamespace(f.ns), leasehold.WithIdentity(name), f.asAdmin(),
		leasehold.WithLogger(slog.New(slog.NewTextHandler(&f.log, nil))),
	}, opts...)
}

// patch changes the Lease by hand.
func (f *fleet) patch(body string) *coordinationv1.Lease {
	f.Helper()
	l, err := f.admin.Patch(f.Context(), lease, types.MergePatchType, []byte(body),
		metav1.PatchOptions{FieldManager: "kubectl-edit"})
	if err != nil {
		f.Fatal(err)
	}
	return l
}

// put makes the Lease what it says, by hand.
func (f *fleet) put(spec coordinationv1.LeaseSpec) *coordinationv1.Lease {
	f.Helper()
	if err := f.admin.Delete(f.Context(), lease, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		f.Fatal(err)
	}
	l, err := f.admin.Create(f.Context(),
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: lease}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		f.Fatal(err)
	}
	return l
}

// held is the spec of a Lease that somebody holds for two seconds.
func held(identity string, renewed time.Time) coordinationv1.LeaseSpec {
	at := metav1.NewMicroTime(renewed)
	return coordinationv1.LeaseSpec{HolderIdentity: &identity, LeaseDurationSeconds: new(int32(2)), AcquireTime: &at,
		RenewTime: &at, LeaseTransitions: new(int32(7))}
}

func (f *fleet) acquire(name string, opts ...leasehold.Option) leasehold.Session {
	f.Helper()
	s, err := leasehold.Acquire(f.Context(), f.options(name, opts...)...)
	if err != nil {
		f.Fatal(err)
	}
	return s
}

// What users of kube-lease-manager, kubert and client-go find there works here, on the real API server.
func TestParity(t *testing.T) {
	server := controlplane.ForTest(t)
	for _, row := range []struct {
		name string
		show func(f *fleet)
	}{
		{"builder: name, namespace, identity, duration, interval, field manager, labels, owner", func(f *fleet) {
			owner := metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "c",
				UID: "0f6e4cf7-5d0a-4b5c-8a0e-3f1c1a6f0a11"}
			s := f.acquire("one", leasehold.WithDuration(30*time.Second), leasehold.WithRenewInterval(5*time.Second),
				leasehold.WithFieldManager("mine"),
				leasehold.WithLabels(map[string]string{"team": "storage"}), leasehold.WithOwner(owner))
			l := f.get()
			if *l.Spec.HolderIdentity != "one" || *l.Spec.LeaseDurationSeconds != 30 ||
				l.ManagedFields[0].Manager != "mine" ||
				l.Labels["team"] != "storage" || l.OwnerReferences[0] != owner {
				f.Errorf("the Lease is %v", l)
			}
			s.Release()
		}},
		{"watch(): a channel of sessions; ctx ends it and releases", func(f *fleet) {
			ctx, cancel := context.WithCancel(f.Context())
			sessions := leasehold.Chan(ctx, leasehold.Sessions(ctx, f.options("one")...))
			s := <-sessions
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for range 5 {
				select {
				case <-sessions:
					f.Error("a second session beside the first")
				case <-tick.C:
				}
			}
			cancel()
			<-s.Done()
			for range sessions {
			}
			f.wantFree()
		}},
		{"changed() and release(): keep it while one wants, and give it back", func(f *fleet) {
			s := f.acquire("one")
			if s.Err() != nil || s.ValidFor() <= 0 || s.FencingToken() == 0 {
				f.Errorf("%v, valid for %v, token %d", s.Err(), s.ValidFor(), s.FencingToken())
			}
			for range 2 {
				if err := s.Release(); err != nil {
					f.Error(err)
				}
			}
			<-s.Done()
			f.wantFree()
		}},
		{"AutoCreate: ten candidates at once, no Lease: one leads", func(f *fleet) {
			for i := range 10 {
				f.run(fmt.Sprint("candidate ", i), nil, f.asAdmin())
			}
			f.await("led", func() bool { return f.leader() != "" })
			time.Sleep(time.Second)
			if f.sessions.Load() != 1 {
				f.Errorf("%d sessions", f.sessions.Load())
			}
		}},
		{"CreateNew: ErrExists with the name", func(f *fleet) {
			f.acquire("one", leasehold.WithCreateMode(leasehold.CreateNew)).Release()
			_, err := leasehold.Acquire(f.Context(), f.options("two", leasehold.WithCreateMode(leasehold.CreateNew))...)
			if !errors.Is(err, leasehold.ErrExists) || !strings.Contains(err.Error(), f.ns+"/"+lease) {
				f.Errorf("error %v", err)
			}
		}},
		{"UseExisting, init(): ErrNotFound with the name; deleted later, it waits", func(f *fleet) {
			_, err := leasehold.Acquire(f.Context(),
				f.options("one", leasehold.WithCreateMode(leasehold.UseExisting))...)
			if !errors.Is(err, leasehold.ErrNotFound) || !strings.Contains(err.Error(), f.ns+"/"+lease) {
				f.Errorf("error %v", err)
			}
			f.put(coordinationv1.LeaseSpec{})
			f.run("one", nil, f.asAdmin(), leasehold.WithCreateMode(leasehold.UseExisting))
			f.awaitLeader("one")
			if err := f.admin.Delete(f.Context(), lease, metav1.DeleteOptions{}); err != nil {
				f.Fatal(err)
			}
			f.awaitLeader("")
			time.Sleep(time.Second)
			f.put(coordinationv1.LeaseSpec{})
			f.awaitLeader("one")
		}},
		{"apply: no growth of managed fields over ten terms of two holders", func(f *fleet) {
			for i := range 10 {
				f.acquire([]string{"one", "two"}[i%2]).Release()
			}
			if n := len(f.get().ManagedFields); n > 2 {
				f.Errorf("%d field managers", n)
			}
		}},
		{"clock skew: another machine's clock is not looked at", func(f *fleet) {
			for _, skew := range []time.Duration{-time.Hour, time.Hour} {
				f.put(held("elsewhere", time.Now().Add(skew)))
				began := time.Now()
				s := f.acquire("one")
				if waited := time.Since(began); waited < 1900*time.Millisecond {
					f.Errorf("skew %v: took a lease that is held for 2s after %v", skew, waited)
				}
				s.Release()
			}
		}},
		{"backoff: the delays are those of WithBackOff", func(f *fleet) {
			// The first two are longer than any by default; by default, the others would take minutes.
			policy := &listed{delays: []time.Duration{2 * time.Second, 1200 * time.Millisecond}}
			var requests atomic.Int64
			cfg := f.server.Config()
			cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
				return roundTripper(func(req *http.Request) (*http.Response, error) {
					if requests.Add(1) <= 300 {
						return nil, errors.New("nobody answers")
					}
					return next.RoundTrip(req)
				})
			})
			f.run("one", nil, leasehold.WithRESTConfig(cfg), leasehold.WithDuration(time.Minute),
				leasehold.WithBackOff(func() backoff.BackOff { return policy }))
			f.awaitLeader("one")
			policy.mu.Lock()
			defer policy.mu.Unlock()
			for i, want := range policy.delays {
				if got := policy.asked[i+1].Sub(policy.asked[i]); got < want {
					f.Errorf("failure %d came %v after the one before, and the delay is %v", i+2, got, want)
				}
			}
		}},
		{"odd content: no holder is free, whatever else is there", func(f *fleet) {
			at := metav1.NowMicro()
			for _, spec := range []coordinationv1.LeaseSpec{
				{}, {HolderIdentity: new("")}, {RenewTime: &at, AcquireTime: &at},
				{LeaseDurationSeconds: new(int32(3600))},
				{HolderIdentity: new(""), RenewTime: &at, LeaseDurationSeconds: new(int32(3600)),
					LeaseTransitions: new(int32(1<<31 - 1))},
			} {
				f.put(spec)
				s, err := leasehold.TryAcquire(f.Context(), f.options("one")...)
				if err != nil {
					f.Errorf("%v: %v", spec, err)
				}
				if n := *f.get().Spec.LeaseTransitions; n < 0 {
					f.Errorf("%d transitions", n)
				}
				s.Release()
			}
		}},
		{"odd content: a holder without times holds it", func(f *fleet) {
			f.put(coordinationv1.LeaseSpec{HolderIdentity: new("elsewhere")})
			if _, err := leasehold.TryAcquire(f.Context(), f.options("one")...); !errors.Is(err, leasehold.ErrHeld) {
				f.Errorf("error %v", err)
			}
			f.acquire("one", leasehold.WithDuration(time.Second)).Release() // its own duration later
		}},
		{"claimed(), sync(): who holds it, from Monitor and Holders", func(f *fleet) {
			var monitor leasehold.Monitor
			s := f.acquire("one", leasehold.WithMonitor(&monitor))
			if l := monitor.Leases()[0]; !l.Leading || l.Holder.Identity != "one" ||
				l.FencingToken != s.FencingToken() || l.ResourceVersion == "" {
				f.Errorf("status %+v", l)
			}
			for h := range leasehold.Holders(f.Context(), f.options("observer")...) {
				if h.Identity != "one" || h.Duration != 15*time.Second || h.RenewTime.IsZero() {
					f.Errorf("holder %+v", h)
				}
				break
			}
			s.Release()
		}},
		{"ensure_claimed(): mine, or the other's claim at once", func(f *fleet) {
			s, err := leasehold.TryAcquire(f.Context(), f.options("one")...)
			if err != nil {
				f.Fatal(err)
			}
			_, err = leasehold.TryAcquire(f.Context(), f.options("two")...)
			if !errors.Is(err, leasehold.ErrHeld) || !strings.Contains(err.Error(), `"one"`) {
				f.Errorf("error %v", err)
			}
			s.Release()
		}},
		{"vacate(): only if it is mine, and again after a failure", func(f *fleet) {
			f.run("one", nil, f.asAdmin())
			f.awaitLeader("one")
			if freed, err := leasehold.Vacate(f.Context(), f.options("two")...); freed || err != nil {
				f.Errorf("somebody else's: %v, %v", freed, err)
			}
			over, cancel := context.WithCancel(f.Context())
			cancel()
			if freed, err := leasehold.Vacate(over, f.options("one")...); freed || err == nil {
				f.Errorf("when ctx has ended: %v, %v", freed, err)
			}
			if freed, err := leasehold.Vacate(f.Context(), f.options("one")...); !freed || err != nil {
				f.Errorf("mine: %v, %v", freed, err)
			}
			f.await("lost", func() bool { return f.sessions.Load() > 1 || f.leader() == "" })
		}},
		{"spawn(): every change of holder, mine or not", func(f *fleet) {
			ctx, cancel := context.WithCancel(f.Context())
			defer cancel()
			holders := leasehold.Chan(ctx, leasehold.Holders(ctx, f.options("observer")...))
			next := func(want string) {
				select {
				case h := <-holders:
					if h.Identity != want {
						f.Errorf("holder %q, want %q", h.Identity, want)
					}
				case <-time.After(time.Minute):
					f.Fatalf("nobody says that %q holds it", want)
				}
			}
			next("")
			for _, name := range []string{"one", "two"} {
				s := f.acquire(name)
				next(name)
				s.Release()
				next("")
			}
			cancel()
			for range holders {
			}
		}},
		{"Do: once, with the lease", func(f *fleet) {
			v, err := leasehold.Do(f.Context(), func(ctx context.Context) (string, error) {
				s, _ := leasehold.FromContext(ctx)
				return s.Holder().Identity, s.Err()
			}, f.options("one")...)
			if v != "one" || err != nil {
				f.Errorf("%q, %v", v, err)
			}
			f.wantFree()
		}},
		{"delete on release: gone with the release, and tokens grow on", func(f *fleet) {
			var last uint64
			for range 3 {
				s := f.acquire("one", leasehold.WithDeleteOnRelease())
				if s.FencingToken() <= last {
					f.Errorf("token %d after %d", s.FencingToken(), last)
				}
				last = s.FencingToken()
				if err := s.Release(); err != nil {
					f.Error(err)
				}
				if _, err := f.admin.Get(f.Context(), lease, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
					f.Errorf("the Lease is there: %v", err)
				}
			}
		}},
		{"reclaim: a namesake that died is not waited for", func(f *fleet) {
			f.put(held("pod-0", time.Now()))
			f.patch(`{"spec":{"leaseDurationSeconds":3600}}`)
			f.acquire("pod-0", leasehold.WithReclaim()).Release()
		}},
		{"admin server: the Monitor as JSON, and its check", func(f *fleet) {
			var monitor leasehold.Monitor
			s := f.acquire("one", leasehold.WithMonitor(&monitor))
			defer s.Release()
			w := httptest.NewRecorder()
			monitor.ServeHTTP(w, httptest.NewRequest("GET", "/leases", nil))
			var answer struct{ Leases []leasehold.LeaseStatus }
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || len(answer.Leases) != 1 ||
				!answer.Leases[0].Leading {
				f.Errorf("%v: %s", err, w.Body)
			}
			if err := monitor.Check(nil); err != nil {
				f.Error(err)
			}
		}},

		// The faults of the peers.
		{"fault: standbys wipe a fresh winner", func(f *fleet) {
			f.put(held("dead", time.Now()))
			for i := range 8 { // all wake at the same expiry
				f.run(fmt.Sprint("candidate ", i), nil, f.asAdmin())
			}
			f.await("led", func() bool { return f.leader() != "" })
			time.Sleep(2 * time.Second)
			if f.sessions.Load() != 1 {
				f.Errorf("%d sessions", f.sessions.Load())
			}
		}},
		{"fault: a standby that leaves clears the lease", func(f *fleet) {
			standby := f.run("two", nil, f.asAdmin())
			f.awaitLeader("two")
			standby.quit()
			s := f.acquire("one")
			standby = f.run("two", nil, f.asAdmin())
			time.Sleep(500 * time.Millisecond)
			standby.quit()
			if l := f.get(); s.Err() != nil || *l.Spec.HolderIdentity != "one" {
				f.Errorf("%v, held by %v", s.Err(), l.Spec.HolderIdentity)
			}
			s.Release()
		}},
		{"fault: release wipes the new holder", func(f *fleet) {
			for s := range leasehold.Sessions(f.Context(), f.options("one")...) {
				f.patch(`{"spec":{"holderIdentity":"thief","acquireTime":"2026-01-01T00:00:00.000000Z"}}`)
				if err := s.Release(); !errors.Is(err, leasehold.ErrLost) {
					f.Errorf("Release() = %v", err)
				}
				break
			}
			if l := f.get(); *l.Spec.HolderIdentity != "thief" {
				f.Errorf("held by %q", *l.Spec.HolderIdentity)
			}
		}},
		{"fault: the lease is released while the work still runs", func(f *fleet) {
			ctx, cancel := context.WithCancel(f.Context())
			defer cancel()
			for s := range leasehold.Sessions(ctx, f.options("one", leasehold.WithDuration(time.Second))...) {
				cancel()
				<-s.Done()
				for range 30 { // longer than the lease would last
					time.Sleep(100 * time.Millisecond)
					if l := f.get(); l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity != "one" {
						f.Fatalf("held by %v while the body runs", l.Spec.HolderIdentity)
					}
				}
			}
			f.wantFree()
		}},
		{"fault: transitions overflow", func(f *fleet) {
			f.put(coordinationv1.LeaseSpec{LeaseTransitions: new(int32(1<<31 - 1))})
			f.acquire("one").Release()
			if n := *f.get().Spec.LeaseTransitions; n != 1<<31-1 {
				f.Errorf("%d transitions", n)
			}
		}},
		{"fault: one term only", func(f *fleet) {
			n := 0
			for range leasehold.Sessions(f.Context(), f.options("one", leasehold.WithDuration(time.Second))...) {
				if n++; n == 5 {
					break
				}
			}
		}},
		{"fault: a shared, throttled client starves renewals", func(f *fleet) {
			cfg := f.server.Config()
			cfg.QPS, cfg.Burst = 0.001, 1
			s, err := leasehold.Acquire(f.Context(),
				f.options("one", leasehold.WithRESTConfig(cfg), leasehold.WithDuration(time.Second))...)
			if err != nil {
				f.Fatal(err)
			}
			time.Sleep(3 * time.Second)
			if s.Err() != nil {
				f.Error(s.Err())
			}
			s.Release()
		}},
		{"fault: settings under which two lead are accepted", func(f *fleet) {
			for _, d := range []struct{ d, r, i time.Duration }{{15, 14, 5}, {15, 10, 6}, {1900, 0, 0}} {
				unit := time.Second
				if d.d == 1900 {
					unit = time.Millisecond
				}
				opts := f.options("one", leasehold.WithDuration(d.d*unit))
				if d.r > 0 {
					opts = append(opts, leasehold.WithRenewDeadline(d.r*unit), leasehold.WithRenewInterval(d.i*unit))
				}
				if _, err := leasehold.TryAcquire(f.Context(), opts...); err == nil {
					f.Errorf("%v is accepted", d)
				}
			}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			row.show(newFleet(t, server))
		})
	}
}

// The default identity is <name>_<uuid>, another for each campaign. This test sets a variable of the process, so that
// it runs alone.
func TestDefaultIdentity(t *testing.T) {
	f := newFleet(t, controlplane.ForTest(t))
	t.Setenv("POD_NAME", "pod-7")
	seen := map[string]bool{}
	for range 2 {
		for s := range leasehold.Sessions(t.Context(), leasehold.WithLease(lease), leasehold.WithNamespace(f.ns),
			f.asAdmin()) {
			if id := s.Holder().Identity; !strings.HasPrefix(id, "pod-7_") || len(id) != len("pod-7_")+36 || seen[id] {
				t.Errorf("identity %q", id)
			}
			seen[s.Holder().Identity] = true
			break
		}
	}
}

// A listed policy has these delays, and none after them.
type listed struct {
	delays []time.Duration

	mu    sync.Mutex // protects following
	asked []time.Time
}

func (l *listed) NextBackOff() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, time.Now())
	if n := len(l.asked); n <= len(l.delays) {
		return l.delays[n-1]
	}
	return 0
}

func (l *listed) Reset() {}

// wantFree checks that nobody holds the lease.
func (f *fleet) wantFree() {
	f.Helper()
	if l := f.get(); l.Spec.HolderIdentity != nil {
		f.Errorf("held by %q", *l.Spec.HolderIdentity)
	}
}

// TryAcquire at the same time by many processes' worth of candidates: one has it.
func TestTryAcquireRace(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	var won atomic.Int64
	var group sync.WaitGroup
	for i := range 10 {
		group.Go(func() {
			s, err := leasehold.TryAcquire(t.Context(), f.options(fmt.Sprint("candidate ", i))...)
			switch {
			case err == nil:
				won.Add(1)
				t.Cleanup(func() { s.Release() })
			case !errors.Is(err, leasehold.ErrHeld):
				t.Error(err)
			}
		})
	}
	group.Wait()
	if won.Load() != 1 {
		t.Errorf("%d have it", won.Load())
	}
}
