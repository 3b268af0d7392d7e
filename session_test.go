package leasehold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/internal/oracle"
	"github.com/leasehold-go/leasehold/leasetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A world is a Lease API in virtual time and the candidates for one Lease there. It watches over
// exclusion (G1) and the order of tokens (G7) in every test.
type world struct {
	*testing.T
	srv     *leasetest.Server
	oracles sync.Map // of *oracle.Oracle, by the Lease's name

	memory  leaseMemory
	runners []*runner // that run has started; on the test's goroutine

	mu       sync.Mutex
	sessions []Session
	log      bytes.Buffer
}

const (
	ns   = "default"
	name = "reconciler"
	// The default settings, and a moment.
	D   = 15 * time.Second
	R   = 12 * time.Second
	I   = 3 * time.Second
	eps = 50 * time.Millisecond
)

// inWorld runs test in virtual time.
func inWorld(t *testing.T, test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, srv: leasetest.NewServer()}
		w.srv.OnCommit(func(c leasetest.Change) { w.oracleOf(c.New.Name).Committed(c) })
		defer func() {
			if t.Failed() {
				t.Logf("log:\n%s", w.log.String())
			}
		}()
		test(w)
	})
}

// oracleOf returns what judges the sessions of one Lease.
func (w *world) oracleOf(lease string) *oracle.Oracle {
	o, _ := w.oracles.LoadOrStore(lease,
		oracle.New(ns, lease, oracle.Rules{Fail: w.Errorf, Over: []error{ErrLost, ErrReleased}}))
	return o.(*oracle.Oracle)
}

// long is for how long a test looks on while nothing changes: d, a twelfth of it with -short.
func long(d time.Duration) time.Duration {
	if testing.Short() {
		return d / 12
	}
	return d
}

// Write is the log's.
func (w *world) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(p)
}

func (w *world) logged(part string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Count(w.log.String(), part)
}

// options are those of a candidate whose client and identity have the given name.
func (w *world) options(candidate string, opts ...Option) []Option {
	return append([]Option{
		WithLease(name), WithNamespace(ns), WithIdentity(candidate), WithClient(w.srv.Client(candidate)),
		WithLogger(slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))),
		inVirtualTime, func(o *options) { o.hooks.memory = &w.memory },
	}, opts...)
}

// enter notes a session that begins.
func (w *world) enter(s Session) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if half := s.Holder().Duration * 4 / 10; s.ValidFor() < half-eps {
		w.Errorf("%v: a session begins with %v of trust, want %v", time.Now(), s.ValidFor(), half)
	}
	w.oracleOf(s.Holder().Name).Begin(s.Holder().Identity, s)
	w.sessions = append(w.sessions, s)
}

// sequence is Sessions, watched over.
func (w *world) sequence(ctx context.Context, candidate string, opts ...Option) iter.Seq[Session] {
	return func(yield func(Session) bool) {
		for s := range Sessions(ctx, w.options(candidate, opts...)...) {
			w.enter(s)
			if !yield(s) {
				return
			}
		}
	}
}

// A runner is a candidate that runs a loop on a goroutine of its own.
type runner struct {
	stop context.CancelFunc
	done chan struct{}
	err  error // readable once done is closed
}

// run starts a candidate. Without a body its sessions last until they end.
func (w *world) run(identity string, body func(Session), opts ...Option) *runner {
	if body == nil {
		body = func(s Session) { <-s.Done() }
	}
	ctx, cancel := context.WithCancel(w.Context())
	c := &runner{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		for s := range w.sequence(ctx, identity, append(opts, WithError(&c.err))...) {
			body(s)
		}
	}()
	w.runners = append(w.runners, c)
	synctest.Wait()
	return c
}

// quit ends the candidate's campaign and waits for its loop to end.
func (c *runner) quit() {
	c.stop()
	<-c.done
}

// lease returns the Lease as it is now, which must exist.
func (w *world) lease() *coordinationv1.Lease {
	w.Helper()
	l := w.srv.Lease(ns, name)
	if l == nil {
		w.Fatalf("%v: there is no Lease", time.Now())
	}
	return l
}

// holder returns who holds the lease, "" for nobody.
func (w *world) holder() string {
	l := w.srv.Lease(ns, name)
	if l == nil || l.Spec.HolderIdentity == nil {
		return ""
	}
	return *l.Spec.HolderIdentity
}

// sleep lets d pass and all that happens in it.
func (w *world) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// count returns how many sessions there were.
func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.sessions)
}

// session returns the session number i, or the last one if i is -1.
func (w *world) session(i int) Session {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i < 0 {
		i += len(w.sessions)
	}
	return w.sessions[i]
}

// leads returns whose session is live, "" for nobody's.
func (w *world) leads() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.sessions {
		if s.Err() == nil {
			return s.Holder().Identity
		}
	}
	return ""
}

func (w *world) wantLeader(want string) {
	w.Helper()
	synctest.Wait()
	if got := w.leads(); got != want {
		w.Fatalf("%v: %q leads, want %q", time.Now(), got, want)
	}
}

// steal gives the lease to somebody else by hand.
func (w *world) steal(identity string) {
	w.Helper()
	now := metav1.NowMicro()
	w.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
		l.Spec = coordinationv1.LeaseSpec{
			HolderIdentity: &identity, AcquireTime: &now, RenewTime: &now,
			LeaseDurationSeconds: new(int32(15)), LeaseTransitions: new(*l.Spec.LeaseTransitions + 1),
		}
	})
}

// writes counts the changes that a client commits from now on.
func (w *world) writes(client string) func() int {
	var mu sync.Mutex
	n := 0
	w.srv.OnCommit(func(c leasetest.Change) {
		mu.Lock()
		defer mu.Unlock()
		if c.Client == client {
			n++
		}
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

// Every way out of the loop body, G2: the lease is given back, and only then.
func TestEndings(t *testing.T) {
	type loop func(w *world, ctx context.Context, seq iter.Seq[Session])
	for _, end := range []struct {
		name string
		loop loop
	}{
		{"break", func(w *world, ctx context.Context, seq iter.Seq[Session]) {
			for range seq {
				break
			}
		}},
		{"return", func(w *world, ctx context.Context, seq iter.Seq[Session]) {
			for range seq {
				return
			}
		}},
		{"panic", func(w *world, ctx context.Context, seq iter.Seq[Session]) {
			defer func() {
				if r := recover(); r != "the body's" {
					w.Errorf("recovered %v", r)
				}
			}()
			for range seq {
				panic("the body's")
			}
		}},
		{"Goexit", func(w *world, ctx context.Context, seq iter.Seq[Session]) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				for range seq {
					runtime.Goexit()
				}
			}()
			<-done
		}},
		{"iter.Pull stop", func(w *world, ctx context.Context, seq iter.Seq[Session]) {
			next, stop := iter.Pull(seq)
			if _, ok := next(); !ok {
				w.Error("no session")
			}
			stop()
		}},
		{"break after work", func(w *world, ctx context.Context, seq iter.Seq[Session]) {
			for s := range seq {
				time.Sleep(10 * time.Minute)
				if s.Err() != nil || w.holder() != "a" {
					w.Errorf("after ten minutes: %v, held by %q", s.Err(), w.holder())
				}
				break
			}
		}},
		{"break when lost", func(w *world, ctx context.Context, seq iter.Seq[Session]) {
			for s := range seq {
				w.steal("thief")
				<-s.Done()
				w.steal("") // so that the end finds the lease free
				break
			}
		}},
	} {
		t.Run(end.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				err := errors.New("never written")
				end.loop(w, w.Context(), w.sequence(w.Context(), "a", WithError(&err)))
				if err != nil {
					t.Errorf("err = %v, want nil", err)
				}
				if w.count() != 1 {
					t.Fatalf("%d sessions, want 1", w.count())
				}
				s := w.session(0)
				if s.Err() == nil || s.Context().Err() != context.Canceled || s.ValidFor() != 0 {
					t.Errorf("after the loop: %v, %v, valid for %v", s.Err(), s.Context().Err(), s.ValidFor())
				}
				if w.holder() != "" {
					t.Errorf("after the loop %q holds the lease", w.holder())
				}
				n := w.srv.Client("a").Requests()
				time.Sleep(time.Hour)
				if more := w.srv.Client("a").Requests() - n; more != 0 {
					t.Errorf("%d requests after the loop", more)
				}
			})
		})
	}
}

// The body returns: the lease is released at once, others get a turn, then it campaigns again.
func TestBodyReturns(t *testing.T) {
	inWorld(t, func(w *world) {
		var ended []time.Time
		c := w.run("a", func(s Session) {
			time.Sleep(time.Second)
			ended = append(ended, time.Now())
		})
		time.Sleep(time.Minute)
		c.quit()
		if !errors.Is(c.err, context.Canceled) {
			t.Errorf("err = %v", c.err)
		}
		if n := w.count(); n < 12 || n > 40 {
			t.Errorf("%d sessions of a second in a minute, want a pause of about %v between them", n, I/2)
		}
		for _, s := range w.sessions {
			if s.Err() != ErrReleased && !errors.Is(s.Err(), context.Canceled) {
				t.Errorf("ended with %v", s.Err())
			}
		}
		for i := 1; i < len(ended); i++ {
			if pause := w.sessions[i].Holder().AcquireTime.Sub(ended[i-1]); pause < I/4-eps || pause > I {
				t.Errorf("pause of %v between sessions", pause)
			}
		}
	})
}

// G2 and the row "ctx ends" of the design: the context is cancelled at once, renewals go on until
// the body has returned, and only then the lease is released.
func TestWorkBeforeRelease_G2(t *testing.T) {
	inWorld(t, func(w *world) {
		cause := errors.New("shutting down")
		ctx, cancel := context.WithCancelCause(w.Context())
		defer cancel(nil)
		standby := w.run("b", nil)
		standby.quit()
		var err error
		for s := range w.sequence(ctx, "a", WithError(&err)) {
			standby = w.run("b", nil)
			time.Sleep(time.Second)
			cancel(cause)
			if s.Err() != cause || context.Cause(s.Context()) != cause || s.Context().Err() != context.Canceled ||
				s.ValidFor() <= 0 {
				t.Errorf("when ctx ended: %v, %v, valid for %v", s.Err(), s.Context().Err(), s.ValidFor())
			}
			for range 40 { // a slow body
				before := w.lease().Spec.RenewTime.Time
				time.Sleep(I + eps)
				if w.holder() != "a" || !w.lease().Spec.RenewTime.After(before) {
					t.Fatalf("%v: while the body winds down: held by %q, renewed %v", time.Now(), w.holder(),
						w.lease().Spec.RenewTime)
				}
			}
		}
		if err != cause {
			t.Errorf("err = %v, want the cause of ctx", err)
		}
		time.Sleep(eps)
		w.wantLeader("b")
		standby.quit()
	})
}

// ctx ends while nobody leads here: the loop ends at once, and nothing was written.
func TestCtxEndsWhileWaiting(t *testing.T) {
	inWorld(t, func(w *world) {
		leader := w.run("a", nil)
		wrote := w.writes("b")
		standby := w.run("b", nil)
		time.Sleep(time.Minute)
		before := time.Now()
		standby.quit()
		if time.Since(before) > 0 {
			t.Errorf("it took %v", time.Since(before))
		}
		if !errors.Is(standby.err, context.Canceled) || wrote() != 0 {
			t.Errorf("err = %v after %d writes", standby.err, wrote())
		}
		w.wantLeader("a")
		leader.quit()
	})
}

// Not ranged, nothing happens; ranged twice, it is two campaigns with two identities.
func TestLazyAndRepeatable(t *testing.T) {
	inWorld(t, func(w *world) {
		client := w.srv.Client("a")
		seq := Sessions(w.Context(), WithLease(name), WithNamespace(ns), WithClient(client))
		time.Sleep(time.Hour)
		if client.Requests() != 0 {
			t.Errorf("%d requests before the first range", client.Requests())
		}
		var holders []string
		for range 2 {
			for s := range seq {
				holders = append(holders, s.Holder().Identity)
				break
			}
		}
		if len(holders) != 2 || holders[0] == holders[1] {
			t.Errorf("holders %q, want two", holders)
		}
	})
}

// Losses: what happens to the lease or the API while a session runs, and what the session says.
func TestLosses(t *testing.T) {
	for _, loss := range []struct {
		name   string
		happen func(w *world)
		within time.Duration // until the session has ended
		text   string
	}{
		{"stolen (G4)", func(w *world) { w.steal("thief") }, 0, `lease lost: now held by "thief"`},
		{"stolen by a namesake (G4)", func(w *world) {
			w.steal("a")
		}, 0, `lease lost: now held by another process with the same identity "a"`},
		{"deleted (G4)", func(w *world) { w.srv.Delete(ns, name) }, 0, `lease lost: the Lease was deleted`},
		{"deleted and created again (G4)", func(w *world) {
			l := w.lease()
			w.srv.Delete(ns, name)
			l.UID, l.ResourceVersion = "", ""
			w.srv.Put(l)
		}, 0, `lease lost: the Lease was deleted`},
		{"emptied (G4)", func(w *world) {
			w.srv.Edit(ns, name,
				func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = nil })
		},
			0, `lease lost: its holder was removed`},
		{"duration cut", func(w *world) {
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec.LeaseDurationSeconds = new(int32(2)) })
		}, 0, `lease lost: its duration was cut from 15s to 2s`},
		{"API away", func(w *world) { w.srv.Client("a").Partition(true) }, R, `lease lost: not renewed within 12s`},
		{"API refuses", func(w *world) {
			w.fail("a", leasetest.InternalError())
		}, R, `lease lost: not renewed within 12s`},
		{"API forbids", func(w *world) {
			w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
				return leasetest.Fault{Err: leasetest.Forbidden(r)}
			})
		}, R, `lease lost: not renewed within 12s`},
		{"requests hang", func(w *world) {
			w.drop("a", leasetest.TheRequest)
		}, R, `lease lost: not renewed within 12s`},
		{"stolen, and the watch is silent", func(w *world) {
			w.srv.Client("a").SilenceWatches()
			w.steal("thief")
		}, I, `lease lost: now held by "thief"`},
		{"deleted, and the watch is silent", func(w *world) {
			w.srv.Client("a").SilenceWatches()
			w.srv.Delete(ns, name)
		}, I, `lease lost: the Lease was deleted`},
	} {
		t.Run(loss.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				for s := range w.sequence(w.Context(), "a") {
					time.Sleep(time.Minute)
					if s.Err() != nil {
						t.Fatalf("after a minute: %v", s.Err())
					}
					loss.happen(w)
					if loss.within == 0 {
						synctest.Wait()
					} else {
						time.Sleep(loss.within)
					}
					select {
					case <-s.Done():
					default:
						t.Fatalf("still leading %v later", loss.within)
					}
					if err := s.Err(); !errors.Is(err, ErrLost) || err.Error() != loss.text {
						t.Errorf("Err() = %v, want %s", err, loss.text)
					}
					if context.Cause(s.Context()) != s.Err() || s.Context().Err() != context.Canceled ||
						s.ValidFor() != 0 {
						t.Errorf("%v, %v, valid for %v", context.Cause(s.Context()), s.Context().Err(), s.ValidFor())
					}
					// G6: after a loss nothing is written.
					wrote := w.writes("a")
					w.srv.Client("a").OnRequest(nil)
					w.srv.Client("a").Partition(false)
					time.Sleep(time.Hour)
					if wrote() != 0 {
						t.Errorf("%d writes after the loss", wrote())
					}
					break
				}
				if n := w.logged("lease lost"); n == 0 {
					t.Error("the loss was not logged")
				}
			})
		})
	}
}

// fail has all requests of a client fail with err.
func (w *world) fail(client string, err error) {
	w.srv.Client(client).OnRequest(func(leasetest.Request) leasetest.Fault { return leasetest.Fault{Err: err} })
}

// drop has part of all exchanges of a client be lost.
func (w *world) drop(client string, part leasetest.Drop) {
	w.srv.Client(client).OnRequest(func(leasetest.Request) leasetest.Fault { return leasetest.Fault{Drop: part} })
}

// What a session survives: nothing of this ends it.
func TestSurvives(t *testing.T) {
	inTrouble := func(d time.Duration, begin, end func(w *world)) func(w *world) {
		return func(w *world) { begin(w); time.Sleep(d); end(w) }
	}
	heal := func(w *world) { w.srv.Client("a").OnRequest(nil) }
	for _, trouble := range []struct {
		name   string
		happen func(w *world)
	}{
		{"nothing", func(w *world) {}},
		{"labels edited", func(w *world) {
			for i := range 100 {
				w.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
					l.Labels = map[string]string{"edited": fmt.Sprint(i)}
				})
				time.Sleep(I / 7)
			}
		}},
		{"labels edited, and the watch is silent", func(w *world) {
			w.srv.Client("a").SilenceWatches()
			for i := range 100 {
				w.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
					l.Labels = map[string]string{"edited": fmt.Sprint(i)}
				})
				time.Sleep(I / 7)
			}
		}},
		{"duration lengthened", func(w *world) {
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec.LeaseDurationSeconds = new(int32(3600)) })
			time.Sleep(I)
			if d := *w.lease().Spec.LeaseDurationSeconds; d != 15 {
				w.Errorf("the duration stays %d s", d)
			}
		}},
		{"renewal time edited", func(w *world) {
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
				l.Spec.RenewTime = &metav1.MicroTime{Time: time.Unix(1<<33, 0)}
			})
			time.Sleep(I)
			if w.lease().Spec.RenewTime.After(time.Now()) {
				w.Error("the renewal time stays in the future")
			}
		}},
		{"API away for half of the renew deadline", inTrouble(R/2, func(w *world) {
			w.fail("a", leasetest.ConnectionRefused())
		}, heal)},
		{"requests hang for half of the renew deadline (G9)", inTrouble(R/2, func(w *world) {
			w.drop("a", leasetest.TheRequest)
		}, heal)},
		{"replies are lost for an hour", inTrouble(time.Hour, func(w *world) {
			w.drop("a", leasetest.TheReply)
		}, heal)},
		{"every second reply is lost, and the watch is silent", inTrouble(time.Hour, func(w *world) {
			w.srv.Client("a").SilenceWatches()
			w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
				if r.Count%2 == 0 && r.Verb == "patch" {
					return leasetest.Fault{Drop: leasetest.TheReply}
				}
				return leasetest.Fault{}
			})
		}, heal)},
		{"replies are slow", inTrouble(time.Hour, func(w *world) {
			w.srv.Client("a").OnRequest(func(leasetest.Request) leasetest.Fault {
				return leasetest.Fault{After: 2 * time.Second}
			})
		}, heal)},
		{"429 with Retry-After, two of three", inTrouble(time.Hour, func(w *world) {
			w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
				if r.Count%3 > 0 {
					return leasetest.Fault{Err: leasetest.TooManyRequests(2 * time.Second)}
				}
				return leasetest.Fault{}
			})
		}, heal)},
		{"watches die at once", inTrouble(10*time.Minute, func(w *world) {
			w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
				if r.Verb == "watch" {
					time.AfterFunc(time.Millisecond, func() { w.srv.Client("a").CloseWatches(nil) })
				}
				return leasetest.Fault{}
			})
			w.srv.Client("a").CloseWatches(nil)
		}, heal)},
		{"history compacted", func(w *world) {
			w.srv.Client("a").CloseWatches(nil)
			w.srv.Compact()
		}},
		{"old events replayed", func(w *world) {
			w.srv.Client("a").ReplayWatches(10)
		}},
		{"odd events", func(w *world) {
			w.srv.Client("a").SendEvent(leasetest.Undecodable())
		}},
	} {
		t.Run(trouble.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				c := w.run("a", nil)
				time.Sleep(time.Minute)
				n := w.srv.Client("a").Requests()
				began := time.Now()
				trouble.happen(w)
				took := time.Since(began) + time.Minute
				time.Sleep(time.Minute)
				w.wantLeader("a")
				if w.count() != 1 {
					t.Errorf("%d sessions, want 1", w.count())
				}
				if per := float64(w.srv.Client("a").Requests()-n) / took.Seconds(); per > 5 {
					t.Errorf("%.1f requests per second", per)
				}
				c.quit()
			})
		})
	}
}

// G1 and G3: trust is counted from when the renewal was sent. A reply that takes long extends it by
// that much less, so that the session ends before a standby, which saw the write, takes over.
func TestTrustFromSend_G1(t *testing.T) {
	inWorld(t, func(w *world) {
		var ended time.Time
		leader := w.run("a", func(s Session) {
			<-s.Done()
			ended = time.Now()
		})
		standby := w.run("b", nil)
		time.Sleep(time.Minute)
		var sent time.Time
		w.srv.Client("a").SilenceWatches()
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "patch" && sent.IsZero() {
				sent = time.Now()
				return leasetest.Fault{After: 2 * time.Second} // its effect is immediate, its reply slow
			}
			return leasetest.Fault{Drop: leasetest.TheRequest} // and then silence
		})
		w.sleep(I + D + eps)
		if got := ended.Sub(sent); got < R-eps || got > R {
			t.Errorf("the session ended %v after its last good renewal was sent, want %v", got, R)
		}
		w.wantLeader("b")
		leader.stop()
		standby.quit()
		<-leader.done
	})
}

// G1: the trust in an acquisition counts from when it was sent too, and a session begins only with half
// of it left: else the lease is renewed first.
func TestSlowAcquisition_G1(t *testing.T) {
	inWorld(t, func(w *world) {
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "patch" { // a renewal, whose event may come before the session begins
				return leasetest.Fault{Drop: leasetest.TheRequest}
			}
			return leasetest.Fault{After: 3 * time.Second}
		})
		for s := range w.sequence(w.Context(), "a") {
			if left := s.ValidFor(); left > R-3*time.Second {
				t.Errorf("valid for %v after a reply that took 3s", left)
			}
			break
		}
	})
	inWorld(t, func(w *world) {
		var slept atomic.Int64
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "create" {
				slept.Add(int64(R/2 + time.Second)) // while the request is under way
			}
			return leasetest.Fault{}
		})
		for s := range w.sequence(w.Context(), "a", withClock(sleepyClock{&slept})) { // the world asks for half
			if left := s.ValidFor(); left != R || !w.lease().Spec.RenewTime.After(w.lease().Spec.AcquireTime.Time) {
				t.Errorf("valid for %v, renewed %v", left, w.lease().Spec.RenewTime)
			}
			break
		}
	})
}

// G1: a fleet with settings of its own each, an API that fails in all ways, and people who edit the
// Lease: no two sessions live. The simulation goes on from here.
func TestExclusion_G1(t *testing.T) {
	inWorld(t, func(w *world) {
		var fleet []*runner
		for i, d := range []time.Duration{time.Second, 5 * time.Second, 15 * time.Second, 15 * time.Second} {
			id := string(rune('a' + i))
			fleet = append(fleet, w.run(id, func(s Session) {
				for i := 0; s.Err() == nil && i < 4; i++ {
					time.Sleep(d / 3)
				}
			}, WithDuration(d)))
			w.srv.Client(id).OnRequest(func(r leasetest.Request) leasetest.Fault {
				switch r.Count % 23 {
				case 3, 4, 5:
					return leasetest.Fault{Drop: leasetest.TheReply}
				case 9, 10:
					return leasetest.Fault{Drop: leasetest.TheRequest}
				case 14:
					return leasetest.Fault{Err: leasetest.InternalError()}
				case 19:
					return leasetest.Fault{Before: d / 2, Late: true}
				}
				return leasetest.Fault{Before: time.Millisecond, After: time.Millisecond}
			})
		}
		w.sleep(10 * time.Minute)
		if w.count() < 10 {
			t.Errorf("only %d sessions in ten minutes", w.count())
		}
		for _, c := range fleet {
			c.stop()
		}
		for _, c := range fleet {
			<-c.done
		}
	})
}

// G1: clocks whose rates differ by less than D/R make no two leaders.
func TestClockRates_G1(t *testing.T) {
	for _, rate := range []float64{0.81, 1.24} { // of the leader's clock
		t.Run(fmt.Sprint(rate), func(t *testing.T) {
			inWorld(t, func(w *world) {
				leader := w.run("a", nil, withClock(rateClock{time.Now(), rate}))
				standby := w.run("b", nil)
				time.Sleep(time.Minute)
				w.wantLeader("a")
				w.srv.Client("a").Partition(true)
				time.Sleep(D + eps)
				w.wantLeader("b")
				leader.stop()
				w.srv.Client("a").Partition(false)
				<-leader.done
				standby.quit()
			})
		})
	}
}

// withClock makes a candidate measure time by c.
func withClock(c clock) Option {
	return func(o *options) { o.hooks.clock, o.hooks.memory = c, &leaseMemory{} }
}

// A rateClock runs faster or slower than the world's.
type rateClock struct {
	start time.Time
	rate  float64
}

func (c rateClock) now() instant {
	passed := time.Duration(float64(time.Since(c.start)) * c.rate)
	return instant{c.start.Add(passed), passed}
}

func (c rateClock) wait(d time.Duration) time.Duration {
	return time.Duration(math.Ceil(float64(d) / c.rate))
}

// A sleepyClock is that of a machine that can be suspended: its boot time goes on then, its
// monotonic clock and timers do not.
type sleepyClock struct{ slept *atomic.Int64 }

func (c sleepyClock) now() instant {
	return instant{time.Now(), time.Duration(time.Now().UnixNano() + c.slept.Load())}
}
func (c sleepyClock) wait(d time.Duration) time.Duration { return d }

// A clockThatSleeps sleeps at one of the readings, counted from zero.
type clockThatSleeps struct{ readings, at atomic.Int64 }

func (c *clockThatSleeps) now() instant {
	slept := time.Duration(0)
	if c.readings.Add(1) > c.at.Load() {
		slept = R
	}
	return instant{time.Now(), time.Duration(time.Now().UnixNano()) + slept}
}
func (c *clockThatSleeps) wait(d time.Duration) time.Duration { return d }
func (c *clockThatSleeps) asleep() bool                       { return c.readings.Load() > c.at.Load() }

// G6: wherever the machine sleeps until trust has ended, no renewal is sent afterwards.
func TestNoRenewalAfterSleep_G6(t *testing.T) {
	for k, slept := int64(0), true; slept; k++ {
		inWorld(t, func(w *world) {
			clock := &clockThatSleeps{}
			clock.at.Store(1 << 62)
			s := w.acquire(w.Context(), "a", withClock(clock))
			synctest.Wait()
			var sent atomic.Bool
			w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
				if clock.asleep() {
					w.Errorf("%s sent after reading %d of the clock, when trust had ended", r.Verb, k)
				}
				sent.Store(true)
				return leasetest.Fault{}
			})
			clock.at.Store(clock.readings.Load() + k)
			for !sent.Load() && !clock.asleep() {
				w.sleep(I / 100)
			}
			synctest.Wait()
			if slept = clock.asleep(); slept && s.Err() == nil {
				w.Errorf("leads on after reading %d", k)
			}
			s.Release()
		})
	}
}

// G3: from the instant trust ends all methods say so, though no timer has fired.
func TestTruthfulContext_G3(t *testing.T) {
	ask := map[string]func(s Session) bool{
		"Err":           func(s Session) bool { return errors.Is(s.Err(), ErrLost) },
		"Context().Err": func(s Session) bool { return s.Context().Err() == context.Canceled },
		"context.Cause": func(s Session) bool { return errors.Is(context.Cause(s.Context()), ErrLost) },
		"ValidFor":      func(s Session) bool { return s.ValidFor() == 0 },
		"Guard": func(s Session) bool {
			_, err := s.Guard(nil).RoundTrip(&http.Request{})
			return errors.Is(err, ErrLost)
		},
		"context.WithX": func(s Session) bool {
			_ = s.Err()
			ctx, c := context.WithCancel(s.Context())
			defer c()
			return ctx.Err() != nil
		},
		"derived, earlier": nil,
	}
	for name, ended := range ask {
		t.Run("the machine slept: "+name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				var slept atomic.Int64
				var woke *coordinationv1.Lease
				for s := range w.sequence(w.Context(), "a", withClock(sleepyClock{&slept})) {
					derived, cancel := context.WithCancel(s.Context())
					defer cancel()
					time.Sleep(time.Minute)
					slept.Add(int64(R - I - eps)) // trust had at least that much left
					if s.Err() != nil || s.ValidFor() <= 0 || s.ValidFor() > I+eps {
						t.Fatalf("after a nap: %v, valid for %v", s.Err(), s.ValidFor())
					}
					slept.Add(int64(I + 2*eps))
					if ended == nil {
						ended = func(s Session) bool { return s.Err() != nil && derived.Err() != nil }
					}
					if !ended(s) {
						t.Error("it does not tell that the lease ran out while the machine slept")
					}
					<-s.Done() // at once
					if !strings.Contains(s.Err().Error(), "the machine slept") {
						t.Errorf("Err() = %v", s.Err())
					}
					woke = w.lease()
					time.Sleep(time.Minute)
					break
				}
				if now := w.lease(); now.ResourceVersion != woke.ResourceVersion {
					t.Errorf("written after it woke: %v", now.Spec)
				}
			})
		})
	}
}

// G3: ValidFor counts down to 0 at the instant at which Err says so.
func TestValidFor_G3(t *testing.T) {
	inWorld(t, func(w *world) {
		for s := range w.sequence(w.Context(), "a", withClock(rateClock{time.Now(), 1})) {
			w.srv.Client("a").Partition(true)
			left := s.ValidFor()
			if left != R {
				t.Errorf("valid for %v at the beginning, want %v", left, R)
			}
			time.Sleep(left - time.Nanosecond)
			if s.ValidFor() != time.Nanosecond || s.Err() != nil || s.Context().Err() != nil {
				t.Errorf("before its end: valid for %v, %v", s.ValidFor(), s.Err())
			}
			time.Sleep(time.Nanosecond)
			if s.ValidFor() != 0 || !errors.Is(s.Err(), ErrLost) || s.Context().Err() == nil {
				t.Errorf("at its end: valid for %v, %v", s.ValidFor(), s.Err())
			}
			w.srv.Client("a").Partition(false)
			break
		}
	})
}

// G5: a released lease is taken at once, an expired one when it expires.
func TestPromptHandover_G5(t *testing.T) {
	inWorld(t, func(w *world) {
		leader := w.run("a", nil)
		standby := w.run("b", nil)
		time.Sleep(time.Minute)
		released := time.Now()
		leader.quit()
		w.wantLeader("b")
		if d := time.Since(released); d > 0 {
			t.Errorf("the released lease was taken after %v", d)
		}
		third := w.run("c", nil)
		time.Sleep(time.Minute)
		w.srv.Client("b").Partition(true)
		renewed := w.lease().Spec.RenewTime.Time
		time.Sleep(time.Until(renewed.Add(D)) - eps)
		w.wantLeader("")
		time.Sleep(2 * eps)
		w.wantLeader("c")
		standby.stop()
		w.srv.Client("b").Partition(false)
		<-standby.done
		third.quit()
	})
}

// G6: somebody else's lease is never written to, whatever this candidate still believes.
func TestDoNoHarm_G6(t *testing.T) {
	for _, ending := range []struct {
		name string
		end  func(s Session)
	}{
		{"body returns", func(s Session) {}},
		{"Release", func(s Session) {
			if err := s.Release(); !errors.Is(err, ErrLost) {
				panic(fmt.Sprint("Release() = ", err))
			}
		}},
		{"body returns after a renewal was due", func(s Session) { time.Sleep(2 * I) }},
	} {
		t.Run(ending.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				for s := range w.sequence(w.Context(), "a") {
					time.Sleep(time.Minute)
					w.srv.Client("a").SilenceWatches() // a does not hear of the thief
					w.steal("thief")
					stolen := w.lease()
					ending.end(s)
					defer func() {
						if now := w.lease(); now.ResourceVersion != stolen.ResourceVersion {
							t.Errorf("the thief's lease was changed: %v", now.Spec)
						}
					}()
					break
				}
			})
		})
	}
}

// G6: a release that was decided on an old view frees nothing, as when the process was stalled
// between its last renewal and the release while somebody else took over.
func TestStalledRelease_G6(t *testing.T) {
	inWorld(t, func(w *world) {
		var second *runner
		leader := w.run("a", func(s Session) {
			time.Sleep(time.Second)
			w.srv.Client("a").Partition(true) // the release lands late, after b has taken over
			w.srv.Client("a").Partition(false)
			w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
				return leasetest.Fault{Before: 2 * D, Late: true}
			})
		})
		second = w.run("b", nil)
		time.Sleep(3 * D)
		w.wantLeader("b")
		if w.holder() != "b" {
			t.Errorf("%q holds the lease", w.holder())
		}
		leader.stop()
		w.srv.Client("a").OnRequest(nil)
		<-leader.done
		second.quit()
	})
}

// G7: tokens grow from session to session, though the Lease is deleted in between.
func TestFencing_G7(t *testing.T) {
	inWorld(t, func(w *world) {
		n := 0
		for s := range w.sequence(w.Context(), "a") { // the world compares the tokens
			if rv := fmt.Sprint(s.FencingToken()); rv != w.lease().ResourceVersion {
				t.Errorf("token %v, want the resourceVersion of the acquiring write, %v", rv, w.lease().ResourceVersion)
			}
			time.Sleep(time.Minute)
			if n++; n%2 == 0 {
				w.srv.Delete(ns, name)
				<-s.Done()
			}
			if n == 10 {
				break
			}
		}
	})
}

// G8: after the last fault somebody leads within D + 1 s, whatever the fault was and whichever candidate it hit.
func TestLiveness_G8(t *testing.T) {
	for _, fault := range []struct {
		name  string
		begin func(w *world)
	}{
		{"API refuses all", func(w *world) {
			w.fail("a", leasetest.ConnectionRefused())
			w.fail("b", leasetest.ConnectionRefused())
		}},
		{"500 for all", func(w *world) {
			w.fail("a", leasetest.InternalError())
			w.fail("b", leasetest.InternalError())
		}},
		{"401 for all", func(w *world) {
			w.fail("a", leasetest.Unauthorized())
			w.fail("b", leasetest.Unauthorized())
		}},
		{"the standby cannot reach the API when the lease expires", func(w *world) {
			w.fail("a", leasetest.ConnectionRefused())
			w.fail("b", leasetest.ConnectionRefused())
			w.srv.Client("b").CloseWatches(nil)
		}},
		{"deleted", func(w *world) { w.srv.Delete(ns, name) }},
		{"stolen", func(w *world) { w.steal("thief") }},
		{"emptied", func(w *world) {
			// A client that empties it says that it is free. Only the way to the server keeps b behind
			// a, who hears of it at the same time.
			w.srv.Client("b").OnRequest(func(leasetest.Request) leasetest.Fault {
				return leasetest.Fault{Before: time.Millisecond}
			})
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec = coordinationv1.LeaseSpec{} })
		}},
	} {
		t.Run(fault.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				a, b := w.run("a", nil), w.run("b", nil)
				time.Sleep(time.Minute)
				fault.begin(w)
				time.Sleep(long(10 * time.Minute))
				w.srv.Client("a").OnRequest(nil)
				w.srv.Client("b").OnRequest(nil)
				time.Sleep(D + time.Second)
				synctest.Wait()
				if w.leads() == "" {
					t.Error("nobody leads")
				}
				a.quit()
				b.quit()
			})
		})
	}
	t.Run("a crash", func(t *testing.T) {
		inWorld(t, func(w *world) {
			a := w.run("a", nil)
			b := w.run("b", nil)
			time.Sleep(time.Minute)
			w.wantLeader("a")
			w.srv.Client("a").Partition(true)
			time.Sleep(D + time.Second)
			synctest.Wait()
			w.wantLeader("b")
			a.stop()
			w.srv.Client("a").Partition(false)
			<-a.done
			b.quit()
		})
	})
}

// G10 is what every test here shows: a synctest bubble fails if a goroutine is left, TestMain if one
// is left outside, and the server knows its watches.
func TestNoLeaks_G10(t *testing.T) {
	inWorld(t, func(w *world) {
		for range 10 {
			for range w.sequence(w.Context(), "a") {
				time.Sleep(I)
				break
			}
		}
		synctest.Wait()
		if n := w.srv.Client("a").WatchCount(); n != 0 {
			t.Errorf("%d watches are open", n)
		}
	})
}

// A lateWatchClient closes the channel of a stopped watch after a delay, or never.
type lateWatchClient struct {
	*leasetest.Client
	late time.Duration // negative: never
	open atomic.Int64  // watches
}

type lateWatches struct {
	Leases
	client *lateWatchClient
}

type lateWatch struct {
	watch.Interface
	events chan watch.Event
}

func (c *lateWatchClient) Leases(namespace string) lateWatches {
	return lateWatches{c.Client.Leases(namespace), c}
}

func (l lateWatches) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	inner, err := l.Leases.Watch(ctx, opts)
	if err != nil {
		return nil, err
	}
	w := &lateWatch{inner, make(chan watch.Event)}
	l.client.open.Add(1)
	go func() {
		for e := range inner.ResultChan() {
			select {
			case w.events <- e:
			case <-ctx.Done():
			}
		}
		if l.client.late >= 0 {
			time.Sleep(l.client.late)
			l.client.open.Add(-1)
			close(w.events)
		}
	}()
	return w, nil
}

func (w *lateWatch) ResultChan() <-chan watch.Event { return w.events }

// The loop ends only after its watch has. A watch that never ends delays it briefly.
func TestLateWatch_G10(t *testing.T) {
	for name, opts := range map[string][]Option{"own watch": nil, "shared watch": {WithSharedFrom(1)}} {
		for _, late := range []time.Duration{answerGrace / 2, -1} {
			t.Run(fmt.Sprintf("%s, %v late", name, late), func(t *testing.T) {
				inWorld(t, func(w *world) {
					client := &lateWatchClient{Client: w.srv.Client("a"), late: late}
					var left time.Time
					for s := range w.sequence(w.Context(), "a", append(opts, WithClient(client))...) {
						time.Sleep(I)
						if n := client.open.Load(); n != 1 {
							t.Errorf("%d watches are open, want 1", n)
						}
						left = time.Now()
						s.Release()
						break
					}
					if n := client.open.Load(); late > 0 && n != 0 {
						t.Errorf("%d watches outlive the loop", n)
					}
					if took := time.Since(left); took > 2*answerGrace {
						t.Errorf("the loop ended after %v", took)
					}
				})
			})
		}
	}
}

// G11: a missing right is named with the rule that gives it, once.
func TestForbidden_G11(t *testing.T) {
	for verb, rule := range map[string]string{
		"get": `a Role in namespace "default" needs the rule {apiGroups: ["coordination.k8s.io"], resources: ` +
			`["leases"], resourceNames: ["reconciler"], verbs: ["get"]}`,
		"watch": `a Role in namespace "default" needs the rule {apiGroups: ["coordination.k8s.io"], resources: ` +
			`["leases"], resourceNames: ["reconciler"], verbs: ["watch"]}`,
		"apply": `a Role in namespace "default" needs the rule {apiGroups: ["coordination.k8s.io"], resources: ` +
			`["leases"], resourceNames: ["reconciler"], verbs: ["patch"]}`,
		"create": `a Role in namespace "default" needs the rule {apiGroups: ["coordination.k8s.io"], resources: ` +
			`["leases"], verbs: ["create"]}`,
	} {
		t.Run(verb, func(t *testing.T) {
			inWorld(t, func(w *world) {
				if verb != "create" {
					w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
				}
				w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					if r.Verb == verb {
						return leasetest.Fault{Err: leasetest.Forbidden(r)}
					}
					return leasetest.Fault{}
				})
				c := w.run("a", nil)
				time.Sleep(4 * time.Minute)
				if n := w.logged("level=WARN"); n != 1 {
					t.Errorf("%d warnings, want 1", n)
				}
				if w.logged(strings.ReplaceAll(rule, `"`, `\"`)) == 0 {
					t.Errorf("the rule is not in the log: %s", rule)
				}
				if n := w.srv.Client("a").Requests(); n > 300 {
					t.Errorf("%d requests in four minutes", n)
				}
				if verb == "watch" {
					w.wantLeader("a") // by polling
				} else {
					w.wantLeader("")
				}
				w.srv.Client("a").OnRequest(nil)
				time.Sleep(D)
				w.wantLeader("a")
				c.quit()
			})
		})
	}
}

// A standby that lost the race for a free lease learns from its watch who won, and asks only if the
// watch does not tell.
func TestRaceLost(t *testing.T) {
	for _, tt := range []struct {
		name   string
		events func(loser *leasetest.Client)
		reads  int
	}{
		{"the watch has told", func(*leasetest.Client) {}, 0},
		{"the watch is about to tell", func(c *leasetest.Client) {
			c.OnEvent(func(e watch.Event) time.Duration {
				if l, ok := e.Object.(*coordinationv1.Lease); ok && l.Spec.HolderIdentity != nil {
					return 80 * time.Millisecond
				}
				return 0
			})
		}, 0},
		{"the watch fell silent", func(c *leasetest.Client) { time.AfterFunc(time.Millisecond, c.SilenceWatches) }, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				leader, winner, loser := w.run("a", nil), w.run("b", nil), w.run("c", nil)
				time.Sleep(time.Minute)
				var reads, writes int
				w.srv.Client("b").OnRequest(func(leasetest.Request) leasetest.Fault {
					return leasetest.Fault{Before: 2 * time.Millisecond}
				})
				w.srv.Client("c").OnRequest(func(r leasetest.Request) leasetest.Fault {
					switch r.Verb {
					case "get":
						reads++
					case "apply":
						writes++
						return leasetest.Fault{Before: 10 * time.Millisecond}
					}
					return leasetest.Fault{}
				})
				tt.events(w.srv.Client("c"))
				leader.quit()
				w.sleep(150 * time.Millisecond)
				w.wantLeader("b")
				if writes != 1 || reads != tt.reads {
					t.Errorf("%d writes and %d reads, want 1 and %d", writes, reads, tt.reads)
				}
				winner.quit()
				w.sleep(D)
				w.wantLeader("c")
				loser.quit()
			})
		})
	}
}

// G12: a standby sends nothing while the leader renews, and only reads where it may not watch.
func TestQuiet_G12(t *testing.T) {
	inWorld(t, func(w *world) {
		leader, standby := w.run("a", nil), w.run("b", nil)
		time.Sleep(time.Minute)
		n, m := w.srv.Client("b").Requests(), w.srv.Client("a").Requests()
		time.Sleep(time.Hour)
		if more := w.srv.Client("b").Requests() - n; more != 0 {
			t.Errorf("the standby sent %d requests in an hour", more)
		}
		if more := w.srv.Client("a").Requests() - m; more > 1400 {
			t.Errorf("the leader sent %d requests in an hour, want about 1260", more)
		}
		if n := w.logged("\n"); n > 1 {
			t.Errorf("%d lines of log, want one: acquired", n)
		}
		w.srv.Client("b").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "watch" {
				return leasetest.Fault{Err: leasetest.Forbidden(r)}
			}
			return leasetest.Fault{}
		})
		w.srv.Client("b").CloseWatches(nil)
		time.Sleep(time.Minute)
		n = w.srv.Client("b").Requests()
		time.Sleep(time.Hour)
		if more := w.srv.Client("b").Requests() - n; more < 1100 || more > 1400 {
			t.Errorf("the polling standby sent %d requests in an hour, want one every %v", more, I)
		}
		leader.quit()
		time.Sleep(I + eps)
		w.wantLeader("b")
		standby.quit()
	})
}

// A body that outlives its lease: the hook runs once, when the lease may be another's, and there is
// never a second session beside it.
func TestOverrun(t *testing.T) {
	inWorld(t, func(w *world) {
		var called []time.Duration
		var renewed time.Time
		a := w.run("a", func(s Session) {
			if w.count() > 1 {
				<-s.Done()
				return
			}
			time.Sleep(time.Minute)
			renewed = w.lease().Spec.RenewTime.Time
			w.srv.Client("a").Partition(true)
			time.Sleep(10 * time.Minute) // deaf to its context
			w.srv.Client("a").Partition(false)
		}, WithOverrun(func(s Session) {
			if !errors.Is(s.Err(), ErrLost) {
				t.Errorf("overrun of a session that ended with %v", s.Err())
			}
			called = append(called, time.Since(renewed))
		}))
		w.sleep(9 * time.Minute)
		if len(called) != 1 || called[0] < D-eps || called[0] > D+eps {
			t.Errorf("called %v after the last renewal, want once after %v", called, D)
		}
		if w.count() != 1 {
			t.Errorf("%d sessions while the first body runs", w.count())
		}
		time.Sleep(3 * time.Minute)
		w.wantLeader("a") // a new session, at once: the record was its own
		a.quit()
		if len(called) != 1 {
			t.Errorf("called %d times", len(called))
		}
	})
}

// After its own loss a candidate need not wait for its own record to expire.
func TestOwnLoss(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.run("a", nil)
		time.Sleep(time.Minute)
		w.srv.Client("a").Partition(true)
		time.Sleep(R + eps)
		w.srv.Client("a").Partition(false)
		time.Sleep(R/3 + eps) // by then the request that hangs is given up
		w.wantLeader("a")
		a.quit()
	})
}

// An acquisition whose reply is lost is resolved by reading, and taken back when the campaign ends.
func TestDoubtfulAcquisition(t *testing.T) {
	lose := func(w *world, verb string) {
		first := true
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == verb && first {
				first = false
				return leasetest.Fault{Drop: leasetest.TheReply}
			}
			return leasetest.Fault{}
		})
	}
	for _, verb := range []string{"create", "apply"} {
		t.Run(verb+", and the campaign goes on", func(t *testing.T) {
			inWorld(t, func(w *world) {
				if verb == "apply" {
					w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
				}
				lose(w, verb)
				c := w.run("a", nil)
				time.Sleep(R/3 + time.Second)
				w.wantLeader("a")
				c.quit()
			})
		})
		t.Run(verb+", and the campaign ends", func(t *testing.T) {
			inWorld(t, func(w *world) {
				if verb == "apply" {
					w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
				}
				lose(w, verb)
				c := w.run("a", nil)
				time.Sleep(time.Second)
				if w.holder() != "a" {
					t.Fatalf("%q holds the lease", w.holder())
				}
				c.quit()
				if w.holder() != "" || w.count() != 0 {
					t.Errorf("after %d sessions %q holds the lease", w.count(), w.holder())
				}
			})
		})
	}
}

// A release whose reply is lost, that fails, or that nobody hears.
func TestRelease(t *testing.T) {
	inWorld(t, func(w *world) {
		for s := range w.sequence(w.Context(), "a") {
			synctest.Wait() // the watch is open, and tells what became of the release
			w.drop("a", leasetest.TheReply)
			if err := s.Release(); err != nil || w.holder() != "" {
				t.Errorf("Release() = %v, held by %q", err, w.holder())
			}
			if s.Err() != ErrReleased {
				t.Errorf("Err() = %v", s.Err())
			}
			w.srv.Client("a").OnRequest(nil)
			break
		}
		for s := range w.sequence(w.Context(), "a") {
			w.fail("a", leasetest.InternalError())
			if err := s.Release(); err == nil || w.holder() != "a" {
				t.Errorf("Release() = %v, held by %q", err, w.holder())
			}
			w.srv.Client("a").OnRequest(nil)
			if err := s.Release(); err != nil || w.holder() != "" { // it can be repeated
				t.Errorf("second Release() = %v, held by %q", err, w.holder())
			}
			wrote := w.writes("a")
			time.Sleep(time.Hour)
			if err := s.Release(); err != nil || wrote() != 0 {
				t.Errorf("third Release() = %v after %d writes", err, wrote())
			}
			break
		}
	})
}

// A renewal under way when the body returns is waited for: a release beside it could free the lease
// before the renewal is refused, or be refused because of it.
func TestReleaseWaitsForRenewal(t *testing.T) {
	inWorld(t, func(w *world) {
		for range w.sequence(w.Context(), "a") {
			var renewal, release time.Time
			began := newWakeup()
			w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
				switch {
				case r.Verb != "patch":
				case bytes.Contains(r.Body, []byte(`"holderIdentity":null`)):
					release = time.Now()
				default:
					renewal = time.Now()
					began.signal()
				}
				return leasetest.Fault{Before: time.Second, After: time.Second}
			})
			<-began
			defer func() {
				if waited := release.Sub(renewal); waited != 2*time.Second {
					t.Errorf("released %v after the renewal began, want after its reply", waited)
				}
			}()
			break
		}
	})
}

// Two candidates with one identity never lead together, and neither takes the other's lease before
// it expires.
func TestSameIdentity(t *testing.T) {
	inWorld(t, func(w *world) {
		first, second := w.run("a", nil), w.run("a", nil)
		time.Sleep(10 * time.Minute)
		if w.count() != 1 {
			t.Errorf("%d sessions", w.count())
		}
		first.quit()
		w.sleep(time.Second) // the second may lead now
		second.quit()
	})
}

// The mode CreateNew, UseExisting and what becomes of them when the Lease is deleted.
func TestCreateModes(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.run("a", nil, WithCreateMode(CreateNew))
		w.wantLeader("a")
		w.srv.Delete(ns, name)
		time.Sleep(time.Second)
		w.wantLeader("a")
		c.quit()

		c = w.run("b", nil, WithCreateMode(CreateNew))
		<-c.done
		if !errors.Is(c.err, ErrExists) {
			t.Errorf("CreateNew of a Lease that exists: %v", c.err)
		}

		c = w.run("b", nil, WithCreateMode(UseExisting))
		w.wantLeader("b")
		w.srv.Delete(ns, name)
		time.Sleep(time.Hour)
		w.wantLeader("")
		w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
		w.wantLeader("b")
		c.quit()

		w.srv.Delete(ns, name)
		c = w.run("b", nil, WithCreateMode(UseExisting))
		<-c.done
		if !errors.Is(c.err, ErrNotFound) {
			t.Errorf("UseExisting of no Lease: %v", c.err)
		}
	})
}

// A Lease that is deleted under its holder: the holder, if it lives, creates it again; others wait
// until it can be trusted to have heard.
func TestDeleted(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.run("a", nil), w.run("b", nil)
		time.Sleep(time.Minute)
		w.srv.Delete(ns, name)
		time.Sleep(eps)
		w.wantLeader("a")

		w.srv.Client("a").Partition(true) // a does not hear
		time.Sleep(eps)
		w.srv.Delete(ns, name)
		time.Sleep(R - I - 2*eps)
		w.wantLeader("a") // it may still believe
		time.Sleep(I + D - R + 3*eps)
		w.wantLeader("b")
		a.stop()
		w.srv.Client("a").Partition(false)
		<-a.done
		b.quit()
	})
}

// A session that is used after its end, or never began, harms nobody.
func TestZeroSession(t *testing.T) {
	var s Session
	if s.Err() != ErrReleased || s.Context().Err() == nil || s.ValidFor() != 0 || s.FencingToken() != 0 ||
		s.Holder() != (Holder{}) || s.Release() != nil {
		t.Errorf("%v, %v, %v", s.Err(), s.Context().Err(), s.ValidFor())
	}
	<-s.Done()
	if _, err := s.Guard(nil).RoundTrip(&http.Request{}); !errors.Is(err, ErrReleased) {
		t.Errorf("Guard: %v", err)
	}
}

// FromContext finds the session, and only where there is one.
func TestFromContext(t *testing.T) {
	if _, ok := FromContext(t.Context()); ok {
		t.Error("a session out of nothing")
	}
	inWorld(t, func(w *world) {
		type key struct{}
		ctx := context.WithValue(w.Context(), key{}, "outer")
		for s := range w.sequence(ctx, "a") {
			derived, cancel := context.WithTimeout(s.Context(), time.Hour)
			defer cancel()
			if found, ok := FromContext(derived); !ok || found != s {
				t.Errorf("FromContext() = %v, %v", found, ok)
			}
			if derived.Value(key{}) != "outer" {
				t.Error("the values of the campaign's context are gone")
			}
			break
		}
	})
}

// A try is given up after ten seconds at most, however long the lease lasts.
func TestLongestTry(t *testing.T) {
	for verb, next := range map[string]string{"patch": "patch", "apply": "get", "watch": "get"} {
		t.Run(verb, func(t *testing.T) {
			inWorld(t, func(w *world) {
				z := w.acquire(w.Context(), "z")
				if verb != "watch" {
					z.Release()
				}
				var lost, again time.Time
				w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					switch {
					case r.Verb == verb && lost.IsZero():
						lost = time.Now()
						return leasetest.Fault{Drop: leasetest.TheRequest}
					case r.Verb == next && again.IsZero() && !lost.IsZero():
						again = time.Now()
					}
					return leasetest.Fault{}
				})
				a := w.run("a", nil, WithDuration(time.Hour))
				w.sleep(15 * time.Minute)
				if took := again.Sub(lost); lost.IsZero() || took < longestTimeout ||
					took > longestTimeout+time.Second {
					t.Errorf("the next request comes %v after the one that is lost", took)
				}
				z.Release()
				a.quit()
			})
		})
	}
}

// The lease is renewed on time, every time: with all settings within the rules.
func TestRenewals(t *testing.T) {
	for _, s := range []struct{ d, r, i time.Duration }{
		{time.Second, 800 * time.Millisecond, 200 * time.Millisecond},
		{time.Second, 900 * time.Millisecond, 450 * time.Millisecond},
		{15 * time.Second, 12 * time.Second, 3 * time.Second},
		{30 * time.Second, 27 * time.Second, time.Second},
		{time.Hour, 54 * time.Minute, 27 * time.Minute},
		{24855 * 24 * time.Hour, 24 * time.Hour, time.Hour},
	} {
		t.Run(s.d.String(), func(t *testing.T) {
			inWorld(t, func(w *world) {
				var times []time.Time
				w.srv.OnCommit(func(c leasetest.Change) {
					if c.New.Spec.RenewTime != nil {
						times = append(times, time.Now())
					}
				})
				for session := range Sessions(w.Context(),
					w.options("a", WithDuration(s.d), WithRenewDeadline(s.r), WithRenewInterval(s.i))...) {
					for range 100 {
						time.Sleep(s.i)
						if session.Err() != nil || session.ValidFor() < s.r-s.i-s.i/10 {
							t.Fatalf("%v, valid for %v", session.Err(), session.ValidFor())
						}
					}
					break
				}
				for i := 1; i < len(times); i++ {
					least := s.i * 8 / 10
					if i == 1 {
						least = s.i / 4 // so that leases that were taken together are not renewed together
					}
					if gap := times[i].Sub(times[i-1]); gap > s.i || gap < least {
						t.Errorf("%v between renewals %d and %d, want %v to %v", gap, i-1, i, least, s.i)
					}
				}
				if !slices.IsSortedFunc(times, time.Time.Compare) || len(times) < 95 {
					t.Errorf("%d renewals", len(times))
				}
			})
		})
	}
}

// A Guard returns the next RoundTripper's answer, and closes the body of a request that it refuses.
func TestGuard(t *testing.T) {
	inWorld(t, func(w *world) {
		s := w.acquire(w.Context(), "a")
		if next := s.Guard(nil).(guard).next; next != http.DefaultTransport {
			t.Errorf("passes on to %v without a next one", next)
		}
		failed, answer := errors.New("failed"), &http.Response{}
		passed := 0
		guarded := s.Guard(roundTripper(func(*http.Request) (*http.Response, error) {
			passed++
			return answer, failed
		}))
		if got, err := guarded.RoundTrip(&http.Request{}); got != answer || err != failed {
			t.Errorf("answered %v, %v", got, err)
		}
		s.Release()
		for _, body := range []*closedBody{nil, {}} {
			r := &http.Request{}
			if body != nil {
				r.Body = body
			}
			_, err := guarded.RoundTrip(r)
			if got, want := errorText(err), "not sent: "+ErrReleased.Error(); got != want || passed != 1 {
				t.Errorf("refused: %q, want %q; %d requests were passed on", got, want, passed)
			}
			if body != nil && !body.closed {
				t.Error("the body was not closed")
			}
		}
	})
}

// A closedBody records that it was closed.
type closedBody struct{ closed bool }

func (*closedBody) Read([]byte) (int, error) { return 0, io.EOF }
func (b *closedBody) Close() error           { b.closed = true; return nil }

// A session's Holder has its expiry by the wall clock, not by the candidate's clock.
func TestExpiryOfSession(t *testing.T) {
	inWorld(t, func(w *world) {
		c := idleCampaign(w, withClock(rateClock{time.Now().Add(-time.Hour), 2}))
		s := c.newSession(w.Context(), heldByB, c.clock.now().add(-time.Second))
		if left := time.Until(s.holder.ExpiryTime); left != D-time.Second {
			t.Errorf("expires in %v, want %v", left, D-time.Second)
		}
		s.lose(lostBecause(taken, "at once"))
		s.finish()
	})
}

// The loss of a lease during a sleep of the machine names the length of the clock's jump.
func TestLossByJumpOfClock(t *testing.T) {
	inWorld(t, func(w *world) {
		var slept atomic.Int64
		s := w.acquire(w.Context(), "a", withClock(sleepyClock{&slept}))
		slept.Store(int64(R + 1234567*time.Microsecond))
		const want = "lease lost: the clock jumped by 13.235s (the machine slept?)"
		if got := errorText(s.Err()); got != want {
			t.Errorf("lost: %q, want %q", got, want)
		}
		s.Release()
	})
}

// A steppingClock advances by a second each time that it is read.
type steppingClock struct {
	virtualClock
	looks *atomic.Int64
}

func (c steppingClock) now() instant {
	return c.virtualClock.now().add(time.Duration(c.looks.Add(1)) * time.Second)
}

// ValidFor is not negative if trust ends during the call.
func TestTrustEndsDuringValidFor(t *testing.T) {
	inWorld(t, func(w *world) {
		var looks atomic.Int64
		r, _ := idleRenewer(w, heldByB, nil, withClock(steppingClock{looks: &looks}))
		until := r.session.campaign.clock.now().add(1500 * time.Millisecond)
		r.session.until.Store(&until)
		if got := r.session.validFor(); got != 0 || r.session.loss() != nil {
			t.Errorf("valid for %v; lost: %v", got, r.session.loss())
		}
	})
}

// If ctx ends after the lease was lost, WithError gets the cause of ctx alone: the session has reported the loss.
func TestCtxEndsAfterLoss(t *testing.T) {
	inWorld(t, func(w *world) {
		cause := errors.New("SIGTERM")
		ctx, cancel := context.WithCancelCause(w.Context())
		defer cancel(nil)
		var err error
		for s := range w.sequence(ctx, "a", WithError(&err)) {
			w.steal("thief")
			<-s.Done()
			cancel(cause)
		}
		if err != cause {
			t.Errorf("ended by %v, want %v", err, cause)
		}
	})
}

// A released session is never lost.
func TestReleasedIsNotLost(t *testing.T) {
	inWorld(t, func(w *world) {
		s := w.acquire(w.Context(), "a")
		if err := s.Release(); err != nil {
			t.Fatal(err)
		}
		w.sleep(D)
		_, err := s.Guard(nil).RoundTrip(&http.Request{})
		if s.ValidFor() != 0 || !errors.Is(err, ErrReleased) || errors.Is(err, ErrLost) {
			t.Errorf("valid for %v; refused: %v", s.ValidFor(), err)
		}
		if err := s.Release(); err != nil || s.Err() != ErrReleased {
			t.Errorf("Release() = %v, Err() = %v", err, s.Err())
		}
	})
}
