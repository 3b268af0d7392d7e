package leasehold

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/leasetest"
)

// acquire is Acquire, watched over.
func (w *world) acquire(ctx context.Context, candidate string, opts ...Option) Session {
	w.Helper()
	s, err := Acquire(ctx, w.options(candidate, opts...)...)
	if err != nil {
		w.Fatalf("Acquire: %v", err)
	}
	w.enter(s)
	return s
}

// An acquired session lasts until Release, whatever becomes of ctx, and leaves nothing behind.
func TestAcquire(t *testing.T) {
	inWorld(t, func(w *world) {
		ctx, cancel := context.WithCancel(w.Context())
		s := w.acquire(ctx, "a")
		time.Sleep(long(time.Hour))
		if s.Err() != nil || w.holder() != "a" {
			t.Fatalf("after an hour: %v, held by %q", s.Err(), w.holder())
		}
		cancel()
		time.Sleep(long(time.Hour)) // the work winds down
		if s.Err() != context.Canceled || w.holder() != "a" {
			t.Errorf("an hour after ctx ended: %v, held by %q", s.Err(), w.holder())
		}
		for range 2 {
			if err := s.Release(); err != nil || w.holder() != "" {
				t.Errorf("Release() = %v, held by %q", err, w.holder())
			}
		}
		synctest.Wait()
		if n := w.srv.Client("a").WatchCount(); n != 0 {
			t.Errorf("%d watches are open", n)
		}
	})
}

// Release may be called from everywhere at once: each call returns when the lease is free.
func TestReleaseAtOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		s := w.acquire(w.Context(), "a")
		w.srv.Client("a").OnRequest(func(leasetest.Request) leasetest.Fault {
			return leasetest.Fault{Before: time.Second}
		})
		var group sync.WaitGroup
		for range 3 {
			group.Go(func() {
				if err := s.Release(); err != nil || w.holder() != "" {
					t.Errorf("Release() = %v, held by %q", err, w.holder())
				}
			})
		}
		group.Wait()
	})
}

// Acquire waits for the lease as a loop does, and ends with ctx or what makes it impossible.
func TestAcquireWaits(t *testing.T) {
	inWorld(t, func(w *world) {
		first := w.acquire(w.Context(), "a")
		time.AfterFunc(time.Hour, func() { first.Release() })
		began := time.Now()
		second := w.acquire(w.Context(), "b")
		if waited := time.Since(began); waited != time.Hour {
			t.Errorf("waited %v", waited)
		}

		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(w.Context())
		time.AfterFunc(time.Minute, func() { cancel(cause) })
		var err error
		if s, got := Acquire(ctx, w.options("c", WithError(&err))...); got != cause || err != cause || s.Err() == nil {
			t.Errorf("Acquire() = %v, %v, WithError %v", s.Err(), got, err)
		}
		if _, err := Acquire(w.Context(), w.options("c", WithCreateMode(CreateNew))...); !errors.Is(err, ErrExists) {
			t.Errorf("CreateNew: %v", err)
		}
		if _, err := Acquire(w.Context(), WithLease("No_Name")); err == nil {
			t.Error("no error for an invalid name")
		}
		second.Release()
	})
}

// A session that was acquired and lost: Release says so and writes nothing.
func TestAcquireLost(t *testing.T) {
	inWorld(t, func(w *world) {
		s := w.acquire(w.Context(), "a")
		w.steal("thief")
		<-s.Done()
		version := w.lease().ResourceVersion
		for range 2 {
			if err := s.Release(); !errors.Is(err, ErrLost) {
				t.Errorf("Release() = %v", err)
			}
		}
		if w.lease().ResourceVersion != version {
			t.Error("written after the loss")
		}
	})
}

// A session that is lost while a renewal is under way: Release returns when that has ended too.
func TestAcquireLostInRenewal(t *testing.T) {
	inWorld(t, func(w *world) {
		client := &deafClient{LeasesGetter: w.srv.Client("a"), verb: "patch", answer: make(chan struct{})}
		s := w.acquire(w.Context(), "a", WithClient(client))
		w.sleep(I)
		w.steal("thief")
		<-s.Done()
		released := make(chan error, 1)
		go func() { released <- s.Release() }()
		synctest.Wait()
		if len(released) > 0 {
			t.Error("Release returned while a renewal was under way")
		}
		close(client.answer)
		if err := <-released; !errors.Is(err, ErrLost) {
			t.Errorf("Release() = %v", err)
		}

		client.answer = make(chan struct{})
		w.sleep(D)
		s = w.acquire(w.Context(), "a", WithClient(client))
		w.sleep(I)
		w.steal("thief")
		<-s.Done()
		began := time.Now()
		if err := s.Release(); !errors.Is(err, ErrLost) || time.Since(began) > D {
			t.Errorf("Release() = %v after %v, where the renewal does not end", err, time.Since(began))
		}
		close(client.answer)
	})
}

// A Release that fails can be repeated, as long as the lease may still be ours.
func TestAcquireReleaseFails(t *testing.T) {
	inWorld(t, func(w *world) {
		s := w.acquire(w.Context(), "a")
		w.fail("a", leasetest.InternalError())
		if err := s.Release(); err == nil || errors.Is(err, ErrLost) || w.holder() != "a" {
			t.Errorf("Release() = %v, held by %q", err, w.holder())
		}
		w.srv.Client("a").OnRequest(nil)
		if err := s.Release(); err != nil || w.holder() != "" {
			t.Errorf("second Release() = %v, held by %q", err, w.holder())
		}

		s = w.acquire(w.Context(), "a")
		w.fail("a", leasetest.InternalError())
		s.Release()
		time.Sleep(R)
		w.srv.Client("a").OnRequest(nil)
		if err := s.Release(); !errors.Is(err, ErrLost) || w.holder() != "a" {
			t.Errorf("Release() after the trust has ended = %v, held by %q", err, w.holder())
		}
	})
}

// TryAcquire never waits: it has the lease or says who does.
func TestTryAcquire(t *testing.T) {
	inWorld(t, func(w *world) {
		began := time.Now()
		s, err := TryAcquire(w.Context(), w.options("a")...)
		if err != nil || s.Err() != nil || w.holder() != "a" {
			t.Fatalf("TryAcquire() = %v, %v", s.Err(), err)
		}
		n := w.srv.Client("b").Requests()
		none, err := TryAcquire(w.Context(), w.options("b")...)
		if !errors.Is(err, ErrHeld) ||
			err.Error() != `leasehold: lease held by "a", by another session of this process` || none != (Session{}) {
			t.Errorf("TryAcquire() of a held lease = %v", err)
		}
		if n := w.srv.Client("b").Requests() - n; n != 1 {
			t.Errorf("%d requests, want one read", n)
		}
		if time.Since(began) != 0 {
			t.Errorf("waited %v", time.Since(began))
		}
		time.Sleep(time.Hour) // it is renewed
		if s.Err() != nil {
			t.Errorf("after an hour: %v", s.Err())
		}
		s.Release()
		w.fail("b", leasetest.ConnectionRefused())
		if _, err := TryAcquire(w.Context(), w.options("b")...); err == nil || errors.Is(err, ErrHeld) {
			t.Errorf("without an API server: %v", err)
		}
	})
}

// TryAcquire says so where a session of the same process holds the lease, in whatever way the program got it, until it
// is lost.
func TestTryAcquireHeldHere(t *testing.T) {
	const here = `leasehold: lease held by "a", by another session of this process`
	loop := func(opts ...Option) func(*world) { return func(w *world) { w.run("a", nil, opts...) } }
	for _, tt := range []struct {
		name string
		hold func(*world)
		opts []Option
		want string
	}{
		{"a loop", loop(), nil, here},
		{"a loop that watches with others", loop(WithSharedFrom(1)), nil, here},
		{"Do", func(w *world) {
			go Do(w.Context(), func(ctx context.Context) (any, error) {
				<-ctx.Done()
				return nil, nil
			}, w.options("a")...)
			synctest.Wait()
		}, nil, here},
		{"another process", func(w *world) {
			w.run("a", nil).quit()
			w.steal("a")
		}, nil, `leasehold: lease held by "a"; free in 15s unless renewed`},
		{"another process, which a loop has not heard of", func(w *world) {
			w.run("a", nil)
			w.srv.Client("a").SilenceWatches()
			w.steal("thief")
		}, nil, `leasehold: lease held by "thief"; free in 15s unless renewed`},
		{"a loop that has lost it", func(w *world) {
			w.run("a", func(Session) { time.Sleep(2 * D) })
			w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
				if r.Verb == "patch" {
					return leasetest.Fault{Err: leasetest.ConnectionRefused()}
				}
				return leasetest.Fault{}
			})
			w.sleep(R)
		}, nil, `leasehold: lease held by "a"; free in 15s unless renewed`},
		{"a loop with a slot", func(w *world) {
			w.run("a", nil, WithSlots(2))
			now := metav1.NowMicro()
			w.srv.Put(&coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: slotName(name, 1)},
				Spec: coordinationv1.LeaseSpec{HolderIdentity: new("b"), AcquireTime: &now, RenewTime: &now,
					LeaseDurationSeconds: new(int32(15))},
			})
		}, []Option{WithSlots(2)}, `leasehold: lease held: all 2 slots, by "a" (another session of this process), "b"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				tt.hold(w)
				for _, identity := range []string{"a", "c"} { // by the same client, and by another
					_, err := TryAcquire(w.Context(), w.options(identity, tt.opts...)...)
					if !errors.Is(err, ErrHeld) || err.Error() != tt.want {
						t.Errorf("as %s: %v, want %s", identity, err, tt.want)
					}
				}
				if strings.Contains(tt.want, "this process") && w.logged("lease held under our own identity") > 0 {
					t.Error("the log says that another holds it in our name")
				}
				for _, r := range w.runners {
					r.quit()
				}
			})
		})
	}
}

// Many that try at once: one has it, the others learn who.
func TestTryAcquireRace(t *testing.T) {
	inWorld(t, func(w *world) {
		var mu sync.Mutex
		var won []Session
		var group sync.WaitGroup
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			w.srv.Client(name).OnRequest(func(leasetest.Request) leasetest.Fault {
				return leasetest.Fault{Before: time.Millisecond, After: time.Millisecond}
			})
			group.Go(func() {
				s, err := TryAcquire(w.Context(), w.options(name)...)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					w.enter(s)
					won = append(won, s)
				case !errors.Is(err, ErrHeld):
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		group.Wait()
		if len(won) != 1 {
			t.Fatalf("%d have it", len(won))
		}
		won[0].Release()
	})
}

// A Lease that somebody edits before each try of TryAcquire: three tries are made. The holder
// after the last one is named.
func TestTryAcquireAgain(t *testing.T) {
	for _, taken := range []bool{false, true} {
		t.Run(fmt.Sprint("taken ", taken), func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.acquire(w.Context(), "a").Release()
				tries := 0
				w.srv.Client("b").OnRequest(func(r leasetest.Request) leasetest.Fault {
					if r.Verb == "apply" {
						tries++
						w.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
							l.Labels = map[string]string{"edited": fmt.Sprint(tries)}
						})
						if taken && tries == 3 {
							w.steal("c")
						}
					}
					return leasetest.Fault{}
				})
				_, err := TryAcquire(w.Context(), w.options("b")...)
				if taken && (!errors.Is(err, ErrHeld) ||
					err.Error() != `leasehold: lease held by "c"; free in 15s unless renewed`) ||
					!taken && !apierrors.IsConflict(err) {
					t.Errorf("TryAcquire() = %v", err)
				}
				if tries != 3 {
					t.Errorf("%d tries", tries)
				}
			})
		})
	}
}

// The Lease is deleted under the claim of TryAcquire.
func TestTryAcquireDeleted(t *testing.T) {
	for mode, want := range map[CreateMode]string{
		AutoCreate: "leasehold: lease held: the Lease was deleted while a holder led that may not have heard; " +
			"free in 15s",
		UseExisting: "leasehold: lease not found: default/reconciler, and UseExisting does not create it",
	} {
		inWorld(t, func(w *world) {
			w.acquire(w.Context(), "a").Release()
			w.srv.Client("b").OnRequest(func(r leasetest.Request) leasetest.Fault {
				switch r.Verb {
				case "apply":
					w.srv.Delete(ns, name)
				case "watch":
					return leasetest.Fault{Before: time.Second}
				}
				return leasetest.Fault{}
			})
			if _, err := TryAcquire(w.Context(), w.options("b", WithCreateMode(mode))...); err == nil ||
				err.Error() != want {
				t.Errorf("TryAcquire() = %v, want %v", err, want)
			}
		})
	}
}

// ctx ends while TryAcquire claims the lease, which is free again then.
func TestTryAcquireEnds(t *testing.T) {
	inWorld(t, func(w *world) {
		w.acquire(w.Context(), "a").Release()
		ctx, cancel := context.WithCancelCause(w.Context())
		own := errors.New("own")
		claims := 0
		w.srv.Client("b").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "apply" {
				claims++
				cancel(own)
				return leasetest.Fault{After: 100 * time.Millisecond}
			}
			return leasetest.Fault{}
		})
		if _, err := TryAcquire(ctx, w.options("b")...); err != own {
			t.Errorf("TryAcquire() = %v", err)
		}
		if claims != 1 || w.holder() != "" {
			t.Errorf("%d claims, held by %q", claims, w.holder())
		}
	})
}

// TryAcquire whose write's outcome is unknown reads, and leaves no lease behind that nobody knows of.
func TestTryAcquireDoubt(t *testing.T) {
	for _, lost := range []string{"create", "create and apply"} {
		t.Run(lost, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					if strings.Contains(lost, r.Verb) {
						return leasetest.Fault{Drop: leasetest.TheReply, Err: leasetest.ConnectionReset()}
					}
					return leasetest.Fault{}
				})
				s, err := TryAcquire(w.Context(), w.options("a")...)
				switch lost {
				case "create":
					if err != nil || s.Err() != nil || w.holder() != "a" {
						t.Errorf("TryAcquire() = %v, %v, held by %q", s.Err(), err, w.holder())
					}
					s.Release()
				default:
					if err == nil || w.holder() != "" {
						t.Errorf("TryAcquire() = %v, held by %q", err, w.holder())
					}
				}
			})
		})
	}
}

// Do calls the function once, with the lease, and tells what became of either.
func TestDo(t *testing.T) {
	inWorld(t, func(w *world) {
		calls := 0
		work := func(ctx context.Context) (int, error) {
			calls++
			s, ok := FromContext(ctx)
			if !ok || s.Err() != nil || w.holder() != "a" {
				t.Errorf("inside: %v, %v, held by %q", ok, s.Err(), w.holder())
			}
			return 42, nil
		}
		if v, err := Do(w.Context(), work, w.options("a")...); v != 42 || err != nil || calls != 1 || w.holder() != "" {
			t.Errorf("Do() = %v, %v after %d calls, held by %q", v, err, calls, w.holder())
		}

		own := errors.New("own")
		v, err := Do(w.Context(), func(ctx context.Context) (string, error) {
			w.steal("thief")
			<-ctx.Done()
			return "half", own
		}, w.options("a")...)
		if v != "half" || !errors.Is(err, own) || !errors.Is(err, ErrLost) {
			t.Errorf("Do() that lost the lease = %v, %v", v, err)
		}

		// Lost without noticing: its result is not to be trusted either.
		w.steal("")
		_, err = Do(w.Context(), func(ctx context.Context) (any, error) {
			w.srv.Client("a").SilenceWatches()
			w.steal("thief")
			return nil, nil
		}, w.options("a")...)
		if !errors.Is(err, ErrLost) {
			t.Errorf("Do() that lost the lease unawares = %v", err)
		}

		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		if _, err := Do(ctx, work, w.options("a")...); !errors.Is(err, context.DeadlineExceeded) || calls != 1 {
			t.Errorf("Do() that never got the lease = %v after %d calls", err, calls)
		}

		w.steal("")
		func() {
			defer func() {
				if recover() != "work" || w.holder() != "" {
					t.Errorf("after a panic held by %q", w.holder())
				}
			}()
			Do(w.Context(), func(context.Context) (any, error) { panic("work") }, w.options("a")...)
		}()
	})
}

// Vacate frees what its identity holds and nothing else, and can be repeated.
func TestVacate(t *testing.T) {
	inWorld(t, func(w *world) {
		if freed, err := Vacate(w.Context(), w.options("a")...); freed || err != nil {
			t.Errorf("without a Lease: %v, %v", freed, err)
		}
		a := w.run("a", nil)
		if freed, err := Vacate(w.Context(), w.options("b")...); freed || err != nil || w.holder() != "a" {
			t.Errorf("somebody else's: %v, %v, held by %q", freed, err, w.holder())
		}
		w.fail("by hand", leasetest.InternalError())
		vacate := func() (bool, error) {
			return Vacate(w.Context(), w.options("a", WithClient(w.srv.Client("by hand")))...)
		}
		if freed, err := vacate(); freed || err == nil {
			t.Errorf("without an answer: %v, %v", freed, err)
		}
		w.srv.Client("by hand").OnRequest(nil)
		w.srv.Client("a").Partition(true)
		if freed, err := vacate(); !freed || err != nil || w.holder() != "" {
			t.Errorf("one's own: %v, %v, held by %q", freed, err, w.holder())
		}
		if freed, err := vacate(); freed || err != nil {
			t.Errorf("twice: %v, %v", freed, err)
		}
		w.srv.Client("a").Partition(false)
		a.quit()

		// The reply is lost: it is freed all the same, and says so.
		w.steal("a")
		w.srv.Client("by hand").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "patch" {
				return leasetest.Fault{Drop: leasetest.TheReply, Err: leasetest.ConnectionReset()}
			}
			return leasetest.Fault{}
		})
		if freed, err := vacate(); !freed || err != nil || w.holder() != "" {
			t.Errorf("with a lost reply: %v, %v, held by %q", freed, err, w.holder())
		}
		if _, err := Vacate(w.Context(), WithLease(name), WithClient(w.srv.Client("a"))); err == nil {
			t.Error("no error without an identity")
		}
	})
}

// Holders yields the present holder at once, and each change, but no renewal.
func TestHolders(t *testing.T) {
	inWorld(t, func(w *world) {
		var seen []string
		ctx, cancel := context.WithCancel(w.Context())
		done := make(chan struct{})
		var err error
		wrote := w.writes("observer")
		go func() {
			defer close(done)
			for h := range Holders(ctx, w.options("observer", WithError(&err))...) {
				if h.Identity == "" && h != (Holder{}) {
					t.Errorf("nobody is %v", h)
				}
				seen = append(seen, h.Identity)
			}
		}()
		synctest.Wait()
		a := w.run("a", nil)
		w.sleep(time.Hour)
		a.quit()
		w.sleep(time.Second)
		b := w.run("b", nil)
		w.sleep(time.Hour)
		w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Labels = map[string]string{"a": "b"} })
		w.steal("thief")
		w.sleep(time.Second)
		w.srv.Delete(ns, name)
		w.sleep(time.Second)
		b.quit()
		cancel()
		<-done
		want := []string{"", "a", "", "b", "thief", ""}
		if len(seen) < len(want) || !equal(seen[:len(want)], want) {
			t.Errorf("saw %q, want %q", seen, want)
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v", err)
		}
		if wrote() != 0 {
			t.Errorf("%d writes", wrote())
		}
	})
}

func equal(a, b []string) bool {
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return len(a) == len(b)
}

// A slow body misses holders in between, but never the newest; an hour of a busy leader is no event.
func TestHoldersSlowBody(t *testing.T) {
	inWorld(t, func(w *world) {
		var seen []string
		c := make(chan struct{})
		ctx, cancel := context.WithCancel(w.Context())
		go func() {
			defer close(c)
			for h := range Holders(ctx, w.options("observer")...) {
				seen = append(seen, h.Identity)
				time.Sleep(time.Minute)
			}
		}()
		for _, id := range []string{"a", "b", "c", "d"} {
			session := w.acquire(w.Context(), id)
			time.Sleep(10 * time.Second)
			if id != "d" {
				session.Release()
			}
			defer session.Release()
		}
		w.sleep(2 * time.Minute)
		n := len(seen)
		if n > 4 || seen[n-1] != "d" {
			t.Errorf("saw %q", seen)
		}
		w.sleep(time.Hour)
		if len(seen) != n {
			t.Errorf("saw %q in an hour of renewals", seen[n:])
		}
		cancel()
		<-c
	})
}

// Holders needs the rights to get and watch, or only to get.
func TestHoldersRights(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.acquire(w.Context(), "a")
		w.srv.Client("observer").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb != "get" {
				return leasetest.Fault{Err: leasetest.Forbidden(r)}
			}
			return leasetest.Fault{}
		})
		var seen []string
		for h := range Holders(w.Context(), w.options("observer")...) {
			seen = append(seen, h.Identity)
			if h.Identity == "" {
				break
			}
			time.AfterFunc(time.Minute, func() { a.Release() })
		}
		if !equal(seen, []string{"a", ""}) {
			t.Errorf("saw %q", seen)
		}
	})
}

// Chan holds a session until it ends, and closes with the sequence.
func TestChan(t *testing.T) {
	inWorld(t, func(w *world) {
		ctx, cancel := context.WithCancel(w.Context())
		sessions := Chan(ctx, w.sequence(ctx, "a"))
		s := <-sessions
		select {
		case <-sessions:
			t.Error("a second session beside the first")
		case <-time.After(time.Hour):
		}
		if w.holder() != "a" {
			t.Errorf("held by %q", w.holder())
		}
		s.Release()
		s = <-sessions
		if s.Err() != nil {
			t.Errorf("the next session: %v", s.Err())
		}
		cancel()
		if _, open := <-sessions; open {
			t.Error("a session after ctx ended")
		}
		if w.holder() != "" {
			t.Errorf("held by %q", w.holder())
		}
	})
	inWorld(t, func(w *world) { // values without Done, and a receiver that leaves
		ctx, cancel := context.WithCancel(w.Context())
		numbers := Chan(ctx, func(yield func(int) bool) {
			for i := 0; yield(i); i++ {
			}
		})
		if a, b := <-numbers, <-numbers; a != 0 || b != 1 {
			t.Errorf("%d, %d", a, b)
		}
		cancel()
		synctest.Wait()
		<-numbers
		if _, open := <-numbers; open {
			t.Error("the channel stays open")
		}
	})
}

// WithDeleteOnRelease deletes the Lease with the release, never after a loss, and tokens grow on.
func TestDeleteOnRelease(t *testing.T) {
	inWorld(t, func(w *world) {
		for i := range 3 {
			s := w.acquire(w.Context(), "a", WithDeleteOnRelease()) // the world compares the tokens
			time.Sleep(time.Duration(i) * I)
			if err := s.Release(); err != nil || w.srv.Lease(ns, name) != nil {
				t.Errorf("Release() = %v, and the Lease is there: %v", err, w.srv.Lease(ns, name) != nil)
			}
		}
		s := w.acquire(w.Context(), "a", WithDeleteOnRelease())
		w.srv.Client("a").SilenceWatches()
		w.steal("thief")
		if err := s.Release(); !errors.Is(err, ErrLost) || w.holder() != "thief" {
			t.Errorf("after a loss: Release() = %v, held by %q", err, w.holder())
		}
	})
	inWorld(t, func(w *world) { // the standby meets the deletion before the watch tells of it
		a := w.run("a", nil, WithDeleteOnRelease())
		b := w.run("b", nil, WithDeleteOnRelease())
		w.sleep(time.Minute)
		const ms = time.Millisecond
		w.srv.Client("b").OnEvent(func(watch.Event) time.Duration { return 20 * ms })
		w.srv.Client("b").OnRequest(func(leasetest.Request) leasetest.Fault { return leasetest.Fault{Before: 10 * ms} })
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "delete" {
				return leasetest.Fault{Before: 25 * ms}
			}
			return leasetest.Fault{}
		})
		a.quit()
		w.sleep(100 * ms)
		w.wantLeader("b")
		w.srv.Client("b").OnEvent(nil)
		b.quit()
	})
	inWorld(t, func(w *world) { // the standby has it at once all the same
		a := w.run("a", nil, WithDeleteOnRelease())
		b := w.run("b", nil, WithDeleteOnRelease())
		w.sleep(time.Minute)
		a.quit()
		w.sleep(eps)
		w.wantLeader("b")
		b.quit()
	})
}

// TryAcquire knows that a session of its own process deleted the Lease of a holder that it saw, after the release.
func TestTryAcquireAfterOwnDeletion(t *testing.T) {
	inWorld(t, func(w *world) {
		try := func() (Session, error) {
			return TryAcquire(w.Context(), w.options("a", WithDeleteOnRelease())...)
		}
		first, err := try()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := try(); !errors.Is(err, ErrHeld) {
			t.Errorf("while it is held: %v", err)
		}
		first.Release()
		second, err := try()
		if err != nil {
			t.Fatal(err)
		}
		second.Release()
	})
}

// WithReclaim takes over from a dead namesake at once.
func TestReclaim(t *testing.T) {
	inWorld(t, func(w *world) {
		for _, identity := range []string{"pod-0", "pod-1"} {
			w.acquire(w.Context(), "other").Release()
			w.steal("pod-0") // which dies
			began := time.Now()
			s, err := Acquire(w.Context(), w.options(identity, WithReclaim())...)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]time.Duration{"pod-0": 0, "pod-1": D}[identity]
			if waited := time.Since(began); waited != want {
				t.Errorf("%s waited %v, want %v", identity, waited, want)
			}
			s.Release()
		}
	})
}

// WithReclaim does not take the lease from another session of this process, which has the identity rightly.
func TestReclaimBesideOwnSession_G1(t *testing.T) {
	inWorld(t, func(w *world) {
		first := w.acquire(w.Context(), "pod-0", WithReclaim())
		released := time.Time{}
		time.AfterFunc(3*D, func() { released = time.Now(); first.Release() })
		second, err := Acquire(w.Context(), w.options("pod-0", WithReclaim())...)
		if err != nil {
			t.Fatal(err)
		}
		defer second.Release()
		if released.IsZero() || !errors.Is(first.Err(), ErrReleased) {
			t.Errorf("the second session began while the first had %v", first.Err())
		}
	})
}

// Nor does it take a term from a campaign of this process that has not heard yet that its claim was granted.
func TestReclaimBesideOwnClaim_G1(t *testing.T) {
	inWorld(t, func(w *world) {
		w.acquire(w.Context(), "other").Release()
		for client, fault := range map[string]leasetest.Fault{
			"slow": {After: time.Second / 10}, "fast": {Before: time.Second / 5},
		} {
			w.srv.Client(client).OnRequest(func(r leasetest.Request) leasetest.Fault {
				if r.Verb != "apply" { // an acquisition
					return leasetest.Fault{}
				}
				return fault
			})
		}
		opts := []Option{WithIdentity("pod-0"), WithReclaim()}
		first, second := w.run("slow", nil, opts...), w.run("fast", nil, opts...)
		w.sleep(time.Minute)
		if n, err := w.count(), w.session(1).Err(); n != 2 || err != nil || w.logged("another process") != 0 {
			t.Errorf("%d sessions with that of the former holder, the first ended with %v", n, err)
		}
		second.quit()
		first.quit()
	})
}

// Labels and owner are there from the creation on, and do not touch others'.
func TestLabelsAndOwner(t *testing.T) {
	owner := metav1.OwnerReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "d", UID: "u"}
	inWorld(t, func(w *world) {
		for _, exists := range []bool{false, true} {
			if exists {
				w.srv.Delete(ns, name)
				w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name,
					Labels:          map[string]string{"theirs": "1"},
					OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: "q"}}}})
			}
			s := w.acquire(w.Context(), "a", WithLabels(map[string]string{"team": "storage"}), WithOwner(owner))
			l := w.lease()
			if l.Labels["team"] != "storage" || exists && (l.Labels["theirs"] != "1" || len(l.OwnerReferences) != 2) ||
				l.OwnerReferences[len(l.OwnerReferences)-1] != owner {
				t.Errorf("exists %v: labels %v, owners %v", exists, l.Labels, l.OwnerReferences)
			}
			s.Release()
		}
	})
}
