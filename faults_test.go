package leasehold

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold/leasetest"
)

// A Lease deleted while its holder is cut off, and a standby whose watch brought neither the holder's
// last renewal nor the deletion: the holder still trusts its lease.
func TestDeletedHolderRenewedUnseen(t *testing.T) {
	inWorld(t, func(w *world) {
		ctx, cancel := context.WithCancel(w.Context())
		defer cancel()
		var a, b Session
		gotA, gotB := make(chan struct{}), make(chan struct{})
		done := make(chan struct{}, 2)
		go func() {
			for s := range w.sequence(ctx, "a") {
				a = s
				close(gotA)
				<-s.Done()
				break
			}
			done <- struct{}{}
		}()
		<-gotA
		began := time.Now()
		go func() {
			for s := range w.sequence(ctx, "b") {
				b = s
				close(gotB)
				<-s.Done()
				break
			}
			done <- struct{}{}
		}()
		time.Sleep(time.Second)
		w.srv.Client("b").SilenceWatches()
		time.Sleep(6500 * time.Millisecond) // a has renewed twice
		w.srv.Client("a").Partition(true)
		w.srv.Delete(ns, name)
		<-gotB
		w.Logf("b leads %v after a did; a valid for %v", time.Since(began), a.ValidFor())
		if a.Err() == nil && b.Err() == nil {
			w.Errorf("two sessions live: a for %v more", a.ValidFor())
		}
		w.srv.Client("a").Partition(false)
		cancel()
		<-done
		<-done
	})
}

// In the last stretch before the renew deadline a holder must not repeat itself every 10 ms.
func TestRenewalStorm(t *testing.T) {
	for _, d := range []time.Duration{time.Second, 15 * time.Second, time.Hour} {
		t.Run(d.String(), func(t *testing.T) {
			inWorld(t, func(w *world) {
				c := w.srv.Client("a")
				for s := range w.sequence(w.Context(), "a", WithDuration(d)) {
					patches, last := 0, 0
					until := time.Now().Add(s.ValidFor())
					c.OnRequest(func(r leasetest.Request) leasetest.Fault {
						if r.Verb == "patch" {
							patches++
							if time.Until(until) < d/10 {
								last++
							}
							return leasetest.Fault{Err: leasetest.TooManyRequests(time.Second)}
						}
						return leasetest.Fault{}
					})
					<-s.Done()
					w.Logf("D=%v: %d renewals, %d of them in the last tenth of D", d, patches, last)
					if last > 12 && float64(last) > d.Seconds()/8 {
						w.Errorf("%d renewals in %v, with the server asking for 1s between them", last, d/10)
					}
					break
				}
			})
		})
	}
}

// Renewals whose replies are lost, but that the watch shows, have not failed: the first one that fails after them is
// repeated as soon as any first one.
func TestLostRepliesAreNoFailures(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.srv.Client("a")
		for range w.sequence(w.Context(), "a") {
			synctest.Wait() // the watch is open
			c.OnRequest(func(leasetest.Request) leasetest.Fault { return leasetest.Fault{Drop: leasetest.TheReply} })
			time.Sleep(time.Minute)
			tries := make(chan time.Time, 100)
			c.OnRequest(func(r leasetest.Request) leasetest.Fault {
				if r.Verb == "patch" {
					tries <- time.Now()
				}
				return leasetest.Fault{Err: leasetest.ConnectionRefused()}
			})
			time.Sleep(2 * I)
			c.OnRequest(nil)
			first, second := <-tries, <-tries
			if pause := second.Sub(first); pause > 100*time.Millisecond {
				w.Errorf("repeated after %v", pause)
			}
			break
		}
	})
}

// CreateNew: the reply to the create is lost, and the API server is away for a while.
func TestCreateNewOutage(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.srv.Client("a")
		began := time.Now()
		created := false
		c.OnRequest(func(r leasetest.Request) leasetest.Fault {
			switch {
			case time.Since(began) > 30*time.Second || !created && r.Verb != "create":
				return leasetest.Fault{}
			case r.Verb == "create" && !created:
				created = true
				return leasetest.Fault{Drop: leasetest.TheReply, Err: leasetest.ConnectionReset()}
			}
			return leasetest.Fault{Err: leasetest.ConnectionRefused()}
		})
		var err error
		led := false
		for range w.sequence(w.Context(), "a", WithCreateMode(CreateNew), WithError(&err)) {
			led = true
			break
		}
		w.Logf("led %v after %v: %v", led, time.Since(began), err)
		if !led {
			w.Error("the campaign took its own Lease for another's")
		}
	})
}

// Release in WithOverrun.
func TestReleaseInOverrun(t *testing.T) {
	inWorld(t, func(w *world) {
		released := make(chan error, 1)
		over := WithOverrun(func(s Session) { released <- s.Release() })
		finished := make(chan struct{})
		go func() {
			defer close(finished)
			for range w.sequence(w.Context(), "a", over) {
				w.srv.Client("a").Partition(true)
				time.Sleep(time.Minute)
				w.srv.Client("a").Partition(false)
				break
			}
		}()
		select {
		case <-finished:
			if err := <-released; !errors.Is(err, ErrLost) {
				w.Error(err)
			}
		case <-time.After(10 * time.Minute):
			w.Fatal("deadlock: the loop never ended")
		}
	})
}

// The function of WithOverrun waits for the body to stop, which calls Release as it does.
func TestReleaseDuringOverrun(t *testing.T) {
	inWorld(t, func(w *world) {
		asked, stopped := make(chan struct{}), make(chan struct{})
		over := WithOverrun(func(s Session) {
			close(asked)
			<-stopped
		})
		for s := range w.sequence(w.Context(), "a", over) {
			w.srv.Client("a").Partition(true)
			<-asked
			if err := s.Release(); !errors.Is(err, ErrLost) {
				w.Error(err)
			}
			close(stopped)
			break
		}
	})
}

// An event recorder that calls Release when the session is lost.
func TestReleaseInEvent(t *testing.T) {
	inWorld(t, func(w *world) {
		var session atomic.Pointer[Session]
		s := w.acquire(w.Context(), "a", WithEventRecorder(recorderFunc(func(what string) {
			if what == "stopped leading" {
				session.Load().Release()
			}
		})))
		session.Store(&s)
		w.steal("thief")
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Release()
		}()
		select {
		case <-done:
		case <-time.After(time.Hour):
			t.Fatal("deadlock: Release does not return")
		}
	})
}

// A recorderFunc is called with what happened to the leadership.
type recorderFunc func(what string)

func (f recorderFunc) Event(runtime.Object, string, string, string) {}
func (f recorderFunc) Eventf(_ runtime.Object, _, _, _ string, args ...any) {
	f(args[1].(string))
}
func (f recorderFunc) AnnotatedEventf(runtime.Object, map[string]string, string, string, string, ...any) {
}

// Somebody undoes each acquisition at once. Tries are no storm, and operators are told why nobody leads.
func TestUndoneAtOnce(t *testing.T) {
	for _, how := range []struct {
		name             string
		after            time.Duration
		undo             func(w *world)
		sessions, warned bool
	}{
		{"emptied", 5 * time.Millisecond, func(w *world) {
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = nil })
		}, true, false},
		{"deleted", 5 * time.Millisecond, func(w *world) { w.srv.Delete(ns, name) }, true, false},
		{"cut before the reply", 0, func(w *world) {
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec.LeaseDurationSeconds = new(int32(10)) })
		}, false, true},
	} {
		t.Run(how.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				claims := 0
				w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					if r.Verb != "apply" && r.Verb != "create" {
						return leasetest.Fault{}
					}
					claims++
					return leasetest.Fault{After: 2 * time.Millisecond}
				})
				stop := make(chan struct{})
				w.srv.OnCommit(func(c leasetest.Change) {
					if c.Client != "a" || c.New == nil || c.New.Spec.HolderIdentity == nil {
						return
					}
					select {
					case <-stop:
					default:
						time.AfterFunc(how.after, func() { how.undo(w) })
					}
				})
				var m Monitor
				a := w.run("a", nil, WithMonitor(&m))
				w.sleep(time.Minute)
				if claims < 50 || claims > 150 {
					t.Errorf("%d claims in a minute", claims)
				}
				if n := w.count(); (n > 0) != how.sessions {
					t.Errorf("%d sessions", n)
				}
				const cut = `msg="lease acquired, but lost at once; retrying"`
				if n := w.logged(cut); (n == 1) != how.warned || n > 1 {
					t.Errorf("told %d times", n)
				}
				if got := w.status(&m).LastError; strings.Contains(got,
					"its duration was cut from 15s to 10s") != how.warned {
					t.Errorf("last error %q", got)
				}
				if err := m.Check(nil); err != nil {
					t.Error(err)
				}
				close(stop)
				w.sleep(2 * D)
				w.wantLeader("a")
				a.quit()
			})
		})
	}
}

// Losses in a row, then an hour in which somebody else leads: a failure after that is the first again.
func TestLossesForgotten(t *testing.T) {
	inWorld(t, func(w *world) {
		empty := func() { w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = nil }) }
		a := w.run("a", nil)
		for range 8 {
			for w.leads() != "a" {
				w.sleep(time.Millisecond)
			}
			empty()
			w.sleep(time.Millisecond)
		}
		w.sleep(time.Second)
		w.steal("b")
		for range 720 {
			w.sleep(5 * time.Second)
			now := metav1.NowMicro()
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec.RenewTime = &now })
		}
		claims := 0
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "apply" {
				claims++
				if claims == 1 {
					return leasetest.Fault{Err: leasetest.EOF(), Drop: leasetest.TheRequest}
				}
			}
			return leasetest.Fault{}
		})
		empty()
		began := time.Now()
		for w.leads() != "a" {
			w.sleep(time.Millisecond)
		}
		if took := time.Since(began); claims != 2 || took > 250*time.Millisecond {
			t.Errorf("led after %d claims and %v", claims, took)
		}
		a.quit()
	})
}

// UseExisting: the watch misses the deletion, then stays silent.
func TestMissedDeletionStalls(t *testing.T) {
	inWorld(t, func(w *world) {
		put := func(holder string) {
			w.srv.Put(&coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
				Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: new(int32(15))},
			})
		}
		put("other")
		ctx, cancel := context.WithTimeout(w.Context(), time.Hour)
		defer cancel()
		began := time.Now()
		go func() {
			time.Sleep(time.Second)
			w.srv.Client("a").SilenceWatches()
			w.srv.Delete(ns, name)
			time.Sleep(time.Minute)
			put("")
		}()
		led := false
		for range w.sequence(ctx, "a", WithCreateMode(UseExisting)) {
			led = true
			break
		}
		w.Logf("led %v after %v", led, time.Since(began))
		if !led {
			w.Error("stalled on a watch that had missed the deletion")
		}
	})
}

// A dial that is under way when the loop is left, by a function that waits for its context.
func TestDialEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		var began, dialing atomic.Int32
		config := &rest.Config{Host: "https://203.0.113.1",
			Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				began.Add(1)
				dialing.Add(1)
				defer dialing.Add(-1)
				<-ctx.Done()
				return nil, ctx.Err()
			}}
		for range Sessions(ctx, WithLease("x"), WithNamespace("default"), WithRESTConfig(config),
			WithDuration(time.Second), unlogged, inVirtualTime) {
		}
		synctest.Wait()
		if n := dialing.Load(); n != 0 || began.Load() == 0 {
			t.Errorf("%d of %d dials outlive the loop", n, began.Load())
		}
	})
}

// A watch that is never answered is an outage to be told of.
func TestSilentOpen(t *testing.T) {
	inWorld(t, func(w *world) {
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "watch" {
				return leasetest.Fault{Drop: leasetest.TheRequest}
			}
			return leasetest.Fault{}
		})
		var log bytes.Buffer
		for range w.sequence(w.Context(), "a", WithLogger(slog.New(slog.NewTextHandler(&log, nil)))) {
			time.Sleep(time.Minute)
			break
		}
		if !strings.Contains(log.String(), "request=watch") {
			w.Errorf("nothing about the watch in the log:\n%s", &log)
		}
	})
}

// The longest duration that the rules allow.
func TestLongestDuration(t *testing.T) {
	inWorld(t, func(w *world) {
		for s := range w.sequence(w.Context(), "a", WithDuration(maxDuration)) {
			if s.ValidFor() < maxDuration/2 {
				w.Error(s.ValidFor())
			}
			break
		}
	})
}

// A server, or something on the way to it, that does not keep the renewal time it is sent.
func TestRenewalTimeNotKept(t *testing.T) {
	inWorld(t, func(w *world) {
		c := oddClient{w.srv.Client("a")}
		for s := range w.sequence(w.Context(), "a", WithClient(c)) {
			before := c.Requests()
			<-s.Done()
			w.Log(s.Err(), c.Requests()-before)
			if n := c.Requests() - before; n > 100 {
				w.Errorf("%d requests", n)
			}
			break
		}
	})
}

type oddClient struct{ *leasetest.Client }

func (c oddClient) Leases(ns string) coordinationv1client.LeaseInterface {
	return oddLeases{c.Client.Leases(ns)}
}

type oddLeases struct {
	coordinationv1client.LeaseInterface
}

func (l oddLeases) Patch(
	ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, sub ...string,
) (*coordinationv1.Lease, error) {
	if pt != types.MergePatchType {
		return l.LeaseInterface.Patch(ctx, name, pt, data, opts, sub...)
	}
	time.Sleep(time.Millisecond)
	data = regexp.MustCompile(`\.\d{6}Z`).ReplaceAll(data, []byte(".000000Z"))
	data = regexp.MustCompile(`"renewTime":"\d{4}`).ReplaceAll(data, []byte(`"renewTime":"1999`))
	return l.LeaseInterface.Patch(ctx, name, pt, data, opts, sub...)
}

// A loop that its context ends is no fault.
func TestQuietEnd(t *testing.T) {
	inWorld(t, func(w *world) {
		ctx, cancel := context.WithCancel(w.Context())
		defer cancel()
		var log bytes.Buffer
		for range w.sequence(ctx, "a", WithLogger(slog.New(slog.NewTextHandler(&log, nil)))) {
			cancel()
		}
		if strings.Contains(log.String(), "level=ERROR") {
			w.Errorf("an error in the log:\n%s", &log)
		}
	})
}

// Two processes with the same identity that claim in the same microsecond; one's request is lost.
func TestSameIdentitySameInstant(t *testing.T) {
	inWorld(t, func(w *world) {
		ctx, cancel := context.WithCancel(w.Context())
		defer cancel()
		first := true
		w.srv.Client("b").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "create" && first {
				first = false
				return leasetest.Fault{Drop: leasetest.TheRequest, Err: leasetest.ConnectionReset()}
			}
			return leasetest.Fault{}
		})
		var sa, sb Session
		live := make(chan string, 10)
		done := make(chan struct{}, 2)
		run := func(name string, s *Session) {
			for x := range w.sequence(ctx, name, WithIdentity("same")) {
				*s = x
				live <- name
				<-x.Done()
				break
			}
			done <- struct{}{}
		}
		w.srv.Client("a").OnEvent(func(e watch.Event) time.Duration { return time.Second })
		go run("a", &sa)
		go run("b", &sb)
		w.Log(<-live)
		select {
		case n := <-live:
			w.Log(n, "a:", sa.Err(), "b:", sb.Err())
			if sa.Err() == nil && sb.Err() == nil {
				w.Error("two sessions live")
			}
		case <-time.After(10 * time.Second):
		}
		cancel()
		<-done
		<-done
	})
}

// G1: two processes with the same identity draw the same acquireTime. The one whose claim met with a conflict waits the
// other's term out, although it looks like its own.
func TestSameIdentitySameAcquireTime_G1(t *testing.T) {
	inWorld(t, func(w *world) {
		same := []Option{WithIdentity("same"), WithChance(func(time.Duration) time.Duration { return 0 })}
		var loops []*runner
		for _, name := range []string{"a", "b"} {
			w.srv.Client(name).OnRequest(func(leasetest.Request) leasetest.Fault {
				return leasetest.Fault{Before: time.Millisecond, After: time.Millisecond}
			})
			loops = append(loops, w.run(name, nil, same...))
		}
		w.sleep(D - eps)
		if n := w.count(); n != 1 {
			t.Errorf("%d sessions, want 1", n)
		}
		if n := w.logged("lease held under our own identity"); n != 1 {
			t.Errorf("%d candidates wait for the other, want 1", n)
		}
		for _, loop := range loops {
			loop.quit()
		}
	})
}

// A standby whose read was lost just before the last fault ended.
func TestLostRead(t *testing.T) {
	inWorld(t, func(w *world) {
		holder := "gone"
		w.srv.Put(&coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: new(int32(15))},
		})
		w.srv.Client("a").Partition(true)
		time.AfterFunc(100*time.Millisecond, func() { w.srv.Client("a").Partition(false) })
		began := time.Now()
		for range w.sequence(w.Context(), "a") {
			w.Logf("led %v after the last fault", time.Since(began)-100*time.Millisecond)
			if time.Since(began) > 16100*time.Millisecond {
				w.Error("more than D + 1s")
			}
			break
		}
	})
}

// The machine sleeps while the reply to the write that takes the lease is under way: the lease is
// lost before anybody works under it, so that nobody overruns it.
func TestNoOverrunWithoutBody(t *testing.T) {
	inWorld(t, func(w *world) {
		var slept atomic.Int64
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "create" {
				time.AfterFunc(time.Second, func() { slept.Store(int64(time.Minute)) })
				return leasetest.Fault{After: 2 * time.Second}
			}
			return leasetest.Fault{}
		})
		over := WithOverrun(func(s Session) { w.Error("overrun, but there is no body:", s.Err()) })
		for range w.sequence(w.Context(), "a", over, withClock(sleepyClock{&slept})) {
			break
		}
	})
}

// A former holder is cut off. While it is, somebody else takes the lease and the Lease is deleted:
// that the Lease showed its own term when it last looked does not mean that nobody leads.
func TestDeletedHolderUnseen(t *testing.T) {
	for _, last := range []string{"held by itself", "free"} {
		t.Run(last, func(t *testing.T) {
			inWorld(t, func(w *world) {
				ctx, cancel := context.WithCancel(w.Context())
				defer cancel()
				var sessions []Session // at most one candidate adds to it at a time
				var group sync.WaitGroup
				defer group.Wait()
				lead := func(name string) {
					for s := range w.sequence(ctx, name) {
						for _, other := range sessions {
							if other.Err() == nil {
								w.Errorf("%s leads, %s for %v more", name, other.Holder().Identity, other.ValidFor())
							}
						}
						sessions = append(sessions, s)
						<-s.Done()
					}
				}
				if last == "free" {
					for range w.sequence(ctx, "c") {
						break
					}
					w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
						if r.Verb == "apply" {
							w.srv.Client("a").Partition(true)
						}
						return leasetest.Fault{}
					})
				}
				group.Go(func() { lead("a") })
				time.Sleep(time.Second)
				w.srv.Client("a").OnRequest(nil)
				w.srv.Client("a").Partition(true)
				w.srv.Client("a").SilenceWatches()
				group.Go(func() { lead("b") })
				time.Sleep(time.Minute)
				w.srv.Client("b").Partition(true)
				w.srv.Delete(ns, name)
				w.srv.Client("a").ResumeWatches(false)
				w.srv.Client("a").CloseWatches(nil)
				w.srv.Client("a").Partition(false)
				time.Sleep(time.Minute)
				w.srv.Client("b").Partition(false)
				cancel()
			})
		})
	}
}

// A creation takes long to arrive. Meanwhile another creates the Lease, leads, is cut off, and the
// Lease is deleted: the creation succeeds then, beside a holder that has not heard.
func TestDeletedHolderMeetsCreation(t *testing.T) {
	inWorld(t, func(w *world) {
		ctx, cancel := context.WithCancel(w.Context())
		defer cancel()
		w.srv.Client("c").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "create" {
				return leasetest.Fault{Before: 3 * time.Second}
			}
			return leasetest.Fault{}
		})
		var sb, sc Session
		gotB, gotC := make(chan struct{}), make(chan struct{})
		done := make(chan struct{}, 2)
		run := func(name string, s *Session, got chan struct{}) {
			for x := range w.sequence(ctx, name) {
				*s = x
				close(got)
				<-x.Done()
				break
			}
			done <- struct{}{}
		}
		go run("c", &sc, gotC)
		time.Sleep(time.Second)
		go run("b", &sb, gotB)
		<-gotB
		time.Sleep(time.Second)
		w.srv.Client("b").Partition(true)
		w.srv.Delete(ns, name)
		<-gotC
		if sb.Err() == nil && sc.Err() == nil {
			w.Errorf("two sessions live")
		}
		w.srv.Client("b").Partition(false)
		cancel()
		<-done
		<-done
	})
}

// An ERROR event without a status, as a client of one's own may make it, ends the watch like any other.
func TestWatchErrorWithoutStatus(t *testing.T) {
	for name, object := range map[string]runtime.Object{"nil": nil, "nil status": (*metav1.Status)(nil),
		"a Lease": &coordinationv1.Lease{}} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				for s := range w.sequence(w.Context(), "a") {
					synctest.Wait() // until the watch is open
					before := w.srv.Client("a").Requests()
					w.srv.Client("a").SendEvent(watch.Event{Type: watch.Error, Object: object})
					time.Sleep(time.Second)
					if s.Err() != nil || w.srv.Client("a").WatchCount() != 1 || w.srv.Client("a").Requests() == before {
						w.Errorf("%v, %d watches, %d requests since", s.Err(), w.srv.Client("a").WatchCount(),
							w.srv.Client("a").Requests()-before)
					}
					break
				}
			})
		})
	}
}

// A lease that is taken away while the reply to our claim is under way gives no session once the watch has
// told of it.
func TestStolenBeforeTheReply(t *testing.T) {
	inWorld(t, func(w *world) {
		ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
		defer cancel()
		w.srv.Client("a").OnRequest(func(r leasetest.Request) (f leasetest.Fault) {
			if r.Verb == "create" {
				f.After = 3 * time.Second
			}
			return f
		})
		time.AfterFunc(time.Second, func() {
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = new("thief") })
		})
		for s := range w.sequence(ctx, "a") {
			w.Errorf("a session begins with %v, valid for %v, though the watch told that the thief holds the lease",
				s.Err(), s.ValidFor())
			break
		}
	})
}

// A store that was set back: who held the lease in what is no more may not have heard. That is so also where
// the same Lease is back, and where that one is deleted then.
func TestHolderOfRestoredStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nobodys := func(term) bool { return false }
		f := &leaseStore{
			clock:    virtualClock{},
			name:     "x",
			fallback: D,
			ours:     nobodys,
			changed:  newWakeup(),
		}
		f.addAnswer(record{uid: "u", version: 9, identity: "b", duration: 2 * D}, f.latest())
		time.Sleep(time.Minute)
		f.addAnswer(record{uid: "u", version: 5}, f.latest())
		if wait := time.Until(f.latest().acquirableAt(nobodys)); wait != 2*D {
			t.Errorf("taken %v after it was found set back, want %v", wait, 2*D)
		}
		if err := f.addEvent(watch.Event{Type: watch.Deleted, Object: &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: "x", UID: "u", ResourceVersion: "6"},
		}}, false); err != nil {
			t.Fatal(err)
		}
		if s := f.latest(); s.exists() || time.Until(s.acquirableAt(nobodys)) != 2*D {
			t.Errorf("taken %v after the Lease was deleted, want %v", time.Until(s.acquirableAt(nobodys)), 2*D)
		}
	})
}
