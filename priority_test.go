package leasehold

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold/internal/annotation"
	"github.com/leasehold-go/leasehold/leasetest"
)

// annotate sets an annotation by hand.
func (w *world) annotate(key, value string) {
	w.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
		if l.Annotations == nil {
			l.Annotations = map[string]string{}
		}
		l.Annotations[key] = value
	})
}

// inPriorityWorld is inWorld for candidates with priorities, which still write when they leave: it waits for that.
func inPriorityWorld(t *testing.T, test func(w *world)) {
	t.Helper()
	inWorld(t, func(w *world) {
		defer func() {
			for _, c := range w.runners {
				c.stop()
			}
			for _, c := range w.runners {
				<-c.done
			}
		}()
		test(w)
	})
}

// acquired returns when the term of the present holder began.
func (w *world) acquired() time.Time { return w.lease().Spec.AcquireTime.Time }

// The standby with the highest priority has the lease next, at once, in whatever order they came, and however many
// there are.
func TestPriority(t *testing.T) {
	inPriorityWorld(t, func(w *world) {
		a := w.run("a", nil)
		for i := range 5 {
			w.run(fmt.Sprint("none", i), nil)
		}
		w.sleep(time.Second)
		for p := range 3 {
			w.run(fmt.Sprint("p", p), nil, WithPriority(p))
			w.sleep(time.Second)
		}
		w.run("late", nil, WithPriority(2))
		w.sleep(time.Minute)
		w.wantLeader("a")
		a.quit()
		w.wantLeader("p2")
		w.sleep(time.Minute)
		if got := w.lease().Annotations[annotation.Priority]; got != "2" {
			t.Errorf("the holder has priority %q", got)
		}
	})
}

// One write by the better standby when it arrives, and none while nothing changes. A candidate without a priority
// writes nothing.
func TestPriorityQuiet_G12(t *testing.T) {
	inPriorityWorld(t, func(w *world) {
		w.run("a", nil)
		w.sleep(time.Second)
		writes := map[string]func() int{}
		for _, c := range []struct {
			identity string
			opts     []Option
		}{{"none", nil}, {"low", []Option{WithPriority(1)}}, {"high", []Option{WithPriority(2)}},
			{"same", []Option{WithPriority(2)}}, {"lower", []Option{WithPriority(-1)}}} {
			writes[c.identity] = w.writes(c.identity)
			w.run(c.identity, nil, c.opts...)
			w.sleep(10 * time.Second)
		}
		before := map[string]int{}
		for identity := range writes {
			before[identity] = w.srv.Client(identity).Requests()
		}
		w.sleep(time.Hour)
		want := map[string]int{"none": 0, "low": 1, "high": 1, "same": 0, "lower": 0}
		for identity, n := range writes {
			if n() != want[identity] {
				t.Errorf("%s wrote %d times, want %d", identity, n(), want[identity])
			}
			if n := w.srv.Client(identity).Requests() - before[identity]; n != 0 {
				t.Errorf("%s sent %d requests in an hour", identity, n)
			}
		}
		w.wantLeader("a")
	})
}

// A standby that died after it registered delays the next holder once, by less than a second, and is forgotten. One
// that left in order delays nobody.
func TestPriorityGone(t *testing.T) {
	for _, tt := range []struct {
		name string
		gone func(w *world, c *runner)
		most time.Duration
	}{
		{"crashed", func(w *world, c *runner) { w.cut("best") }, time.Second},
		{"left", func(w *world, c *runner) { c.quit() }, eps},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inPriorityWorld(t, func(w *world) {
				w.run("a", func(s Session) { time.Sleep(time.Minute) })
				w.sleep(time.Second)
				best := w.run("best", nil, WithPriority(1))
				w.sleep(2 * time.Second)
				if got := w.lease().Annotations[annotation.Standby]; !strings.HasSuffix(got, " 1 best") {
					t.Fatalf("stands by: %q", got)
				}
				tt.gone(w, best)
				w.sleep(2 * time.Second)
				w.run("b", func(s Session) { time.Sleep(time.Minute) })
				w.sleep(time.Minute - 5*time.Second - eps)
				w.wantLeader("a")
				w.sleep(tt.most + 2*eps)
				if tt.most > eps {
					// The one that led has paused for about as long, and may be the first.
					if who := w.holder(); who != "a" && who != "b" {
						t.Errorf("%q leads, want another than the one that is gone", who)
					}
					return
				}
				w.wantLeader("b")
				w.sleep(time.Minute)
				w.wantLeader("a")
				if got := w.lease().Annotations; len(got) != 0 {
					t.Errorf("left behind: %v", got)
				}
			})
		})
	}
}

// A leader with WithYield ends its session when a better candidate stands by, works until its body returns, and is
// followed by that candidate. One without goes on, and so does one that is as good.
func TestYield(t *testing.T) {
	for _, tt := range []struct {
		name   string
		leader []Option
		yields bool
	}{
		{"no priority", []Option{WithYield()}, true},
		{"a lower priority", []Option{WithYield(), WithPriority(4)}, true},
		{"the same priority", []Option{WithYield(), WithPriority(5)}, false},
		{"a higher priority", []Option{WithYield(), WithPriority(6)}, false},
		{"without WithYield", []Option{WithPriority(4)}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inPriorityWorld(t, func(w *world) {
				var m Monitor
				ended := make(chan struct{})
				w.run("a", func(s Session) {
					<-s.Done()
					if !tt.yields {
						return
					}
					if err := s.Err(); !errors.Is(err, ErrYielded) || errors.Is(err, ErrLost) ||
						!strings.HasPrefix(err.Error(), `lease yielded: to "b", which has priority 5 over `) {
						t.Errorf("cause %v", err)
					}
					time.Sleep(time.Minute) // winds down, and may write
					if s.ValidFor() < R/2 {
						t.Errorf("valid for %v", s.ValidFor())
					}
					close(ended)
				}, append(tt.leader, WithMonitor(&m))...)
				w.sleep(time.Second)
				w.run("none", nil)
				w.run("b", nil, WithPriority(5))
				w.sleep(I)
				if !tt.yields {
					w.sleep(time.Hour)
					w.wantLeader("a")
					return
				}
				w.wantLeader("")
				if w.holder() != "a" {
					t.Errorf("held by %q while a winds down", w.holder())
				}
				<-ended
				w.wantLeader("b")
				w.sleep(time.Hour)
				w.wantLeader("b") // a stands by with a lower priority
				if got := m.Leases()[0].Losses; got["yielded"] != 1 {
					t.Errorf("counted %v", got)
				}
			})
		})
	}
}

// The one that HandOver names has the lease next, without any priorities.
func TestHandOver(t *testing.T) {
	for _, how := range []string{"in a loop", "of Acquire"} {
		t.Run(how, func(t *testing.T) {
			inPriorityWorld(t, func(w *world) {
				begin := make(chan struct{})
				handOver := func(s Session) {
					<-begin
					if err := s.HandOver("c7"); err != nil {
						t.Error(err)
					}
				}
				if how == "in a loop" {
					w.run("a", handOver)
				} else {
					s := w.acquire(w.Context(), "a")
					go handOver(s)
				}
				w.wantLeader("a")
				for i := range 10 {
					w.run(fmt.Sprint("c", i), nil)
				}
				w.sleep(time.Minute)
				before := time.Now()
				close(begin)
				w.wantLeader("c7")
				if took := time.Since(before); took > eps {
					t.Errorf("it took %v", took)
				}
				w.sleep(time.Minute)
				w.wantLeader("c7")
			})
		})
	}
	inPriorityWorld(t, func(w *world) {
		s := w.acquire(w.Context(), "a")
		w.run("b", nil)
		w.sleep(time.Second)
		if err := s.HandOver("nobody"); err != nil {
			t.Error(err)
		}
		w.sleep(700 * time.Millisecond)
		w.wantLeader("")
		w.sleep(300 * time.Millisecond)
		w.wantLeader("b")
		if err := s.HandOver("b"); err != nil {
			t.Errorf("once more: %v", err)
		}
		if err := (Session{}).HandOver("b"); err != nil {
			t.Errorf("of the zero session: %v", err)
		}
	})
}

// A name that no candidate would read, and that may be more than a Lease can hold, does not keep the lease from being
// released.
func TestHandOverToLongName(t *testing.T) {
	for _, length := range []int{longestIdentity, longestIdentity + 1, 300_000} {
		inPriorityWorld(t, func(w *world) {
			if err := w.acquire(w.Context(), "a").HandOver(strings.Repeat("x", length)); err != nil {
				t.Error(err)
			}
			_, named := w.lease().Annotations[annotation.Successor]
			if want := length <= longestIdentity; named != want || w.holder() != "" {
				t.Errorf("%d bytes: named %v, want %v; held by %q", length, named, want, w.holder())
			}
		})
	}
}

// TryAcquire never waits, not for a candidate that a release names either.
func TestTryAcquireSuccessor(t *testing.T) {
	inPriorityWorld(t, func(w *world) {
		w.acquire(w.Context(), "a").HandOver("b")
		s, err := TryAcquire(w.Context(), w.options("c")...)
		if err != nil {
			t.Fatal(err)
		}
		s.Release()
	})
}

// askToHandOver asks the holder of the term that began at acquired to hand over to identity.
func (w *world) askToHandOver(acquired time.Time, identity string) {
	w.annotate(annotation.HandOver, annotation.FormatHandOver(acquired, identity))
}

// A request to step down is honoured by any leader, of the term that it names only.
func TestAskedToHandOver(t *testing.T) {
	for _, tt := range []struct {
		name string
		ask  func(w *world)
		next string // "" if the leader goes on, "nobody" if coordinated leader election decides
	}{
		{"to b", func(w *world) { w.askToHandOver(w.acquired(), "b") }, "b"},
		{"to the best", func(w *world) { w.askToHandOver(w.acquired(), "") }, "best"},
		{"to itself", func(w *world) { w.askToHandOver(w.acquired(), "a") }, ""},
		{"in an earlier term", func(w *world) { w.askToHandOver(w.acquired().Add(-time.Microsecond), "b") }, ""},
		{"preferred holder", func(w *world) {
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
				l.Spec.Strategy, l.Spec.PreferredHolder = new(coordinationv1.OldestEmulationVersion), new("b")
			})
		}, "nobody"},
		{"preferred holder is the leader", func(w *world) {
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
				l.Spec.Strategy, l.Spec.PreferredHolder = new(coordinationv1.OldestEmulationVersion), new("a")
			})
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inPriorityWorld(t, func(w *world) {
				w.run("a", nil)
				w.sleep(time.Second)
				for _, identity := range []string{"c", "b", "d"} {
					w.run(identity, nil)
				}
				w.run("best", nil, WithPriority(1))
				w.sleep(time.Minute)
				tt.ask(w)
				if tt.next == "" {
					w.sleep(time.Minute)
					w.wantLeader("a")
					return
				}
				next := strings.TrimPrefix(tt.next, "nobody")
				w.wantLeader(next)
				if err := w.session(0).Err(); !errors.Is(err, ErrYielded) {
					t.Errorf("a's session ended with %v", err)
				}
				w.sleep(time.Minute)
				w.wantLeader(next)
				// A controller of coordinated leader election needs the field.
				if holder := w.lease().Spec.HolderIdentity; holder == nil || next == "" && *holder != "" {
					t.Errorf("held by %v", holder)
				}
			})
		})
	}
}

// Whatever the annotations of a Lease say, a standby takes it no sooner than without them and, if it is free, less
// than a second later.
func TestHostileAnnotations(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	began := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // when a bubble begins
	standby := func(identity string, priority int) string {
		return annotation.FormatStandby(began, annotation.Candidate{Identity: identity, Priority: priority})
	}
	hostile := []map[string]string{
		{annotation.Successor: annotation.FormatSuccessor(3, "nobody")},
		{annotation.Successor: annotation.FormatSuccessor(3, "b")},
		{annotation.Successor: annotation.FormatSuccessor(3, long)},
		{annotation.Successor: "3"}, {annotation.Successor: "3 "}, {annotation.Successor: " "},
		{annotation.Successor: long},
		{annotation.Standby: standby("nobody", 1<<63-1)},
		{annotation.Standby: standby("b", -1<<63)},
		{annotation.HandOver: annotation.FormatHandOver(began, "b")},
		{annotation.Term: annotation.FormatTerm(began), annotation.Priority: long, annotation.Address: long},
	}
	for i, annotations := range hostile {
		for _, held := range []bool{false, true} {
			t.Run(fmt.Sprint(i, " held ", held), func(t *testing.T) {
				inPriorityWorld(t, func(w *world) {
					l := &coordinationv1.Lease{
						ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Annotations: annotations},
						Spec:       coordinationv1.LeaseSpec{LeaseTransitions: new(int32(3))},
					}
					wait := time.Duration(0)
					if held {
						wait = D
						now := &metav1.MicroTime{Time: began}
						l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.AcquireTime, l.Spec.RenewTime =
							new("dead"), new(int32(15)), now, now
					}
					w.srv.Put(l)
					var led time.Duration
					w.run("b", func(s Session) {
						led = time.Since(began)
						<-s.Done()
					}, WithPriority(1))
					w.sleep(D + time.Second + eps)
					w.wantLeader("b")
					if led < wait || led > wait+time.Second {
						t.Errorf("it led after %v, want %v to a second more", led, wait)
					}
				})
			})
		}
	}
}

// Somebody who writes requests and names again and again makes no second leader, and keeps the lease from nobody for
// long.
func TestHostileAnnotationsGoOn(t *testing.T) {
	inPriorityWorld(t, func(w *world) {
		for i := range 3 {
			w.run(fmt.Sprint("c", i), nil, WithPriority(i), WithYield())
		}
		led, looks := 0, 0
		for i := range 600 {
			w.sleep(100 * time.Millisecond)
			l := w.lease()
			switch {
			case l.Spec.HolderIdentity == nil:
				w.annotate(annotation.Successor, annotation.FormatSuccessor(*l.Spec.LeaseTransitions, "nobody"))
			case i%20 == 0:
				unknown := annotation.Candidate{Identity: "nobody", Priority: 1 << 40}
				w.annotate(annotation.Standby, annotation.FormatStandby(w.acquired(), unknown))
			case i%20 == 10:
				w.askToHandOver(w.acquired(), "nobody")
			}
			if looks++; w.leads() != "" {
				led++
			}
		}
		t.Logf("led in %d of %d looks, in %d sessions", led, looks, w.count())
		if led < looks/10 {
			t.Errorf("led in %d of %d looks", led, looks)
		}
	})
}

// A Lease with a strategy belongs to coordinated leader election: nobody competes for it.
func TestStrategy(t *testing.T) {
	inPriorityWorld(t, func(w *world) {
		w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
			Spec: coordinationv1.LeaseSpec{Strategy: new(coordinationv1.OldestEmulationVersion)}})
		writes := w.writes("a")
		w.run("a", nil)
		w.sleep(time.Minute)
		if writes() != 0 || w.logged("waiting until the Lease has no strategy") != 1 {
			t.Errorf("%d writes, %d warnings", writes(), w.logged("waiting until the Lease has no strategy"))
		}
		_, err := TryAcquire(w.Context(), w.options("b")...)
		want := "leasehold: lease held: coordinated leader election decides who holds it: spec.strategy is set"
		if errorText(err) != want || !errors.Is(err, ErrHeld) {
			t.Errorf("TryAcquire: %v, want %s", err, want)
		}
		w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec.Strategy = nil })
		w.wantLeader("a")
	})
}

// A registration meets with the holder's renewals, and with other registrations: all of them get through in the end,
// and no session ends by it.
func TestPriorityContention(t *testing.T) {
	inPriorityWorld(t, func(w *world) {
		slow := func(leasetest.Request) leasetest.Fault {
			return leasetest.Fault{Before: 100 * time.Millisecond, After: 100 * time.Millisecond}
		}
		var runners []*runner
		for i := range 10 {
			identity := fmt.Sprint("p", i)
			w.srv.Client(identity).OnRequest(slow)
			runners = append(runners, w.run(identity, nil, WithPriority(i)))
		}
		w.sleep(time.Minute)
		first := w.leads()
		sessions := w.count()
		if sessions != 1 {
			t.Errorf("%d sessions", sessions)
		}
		best := "p9"
		if first == best {
			best = "p8"
		}
		if got := w.lease().Annotations[annotation.Standby]; !strings.HasSuffix(got, best) {
			t.Errorf("stands by: %q, want %s", got, best)
		}
		i := slices.IndexFunc(runners, func(r *runner) bool { return r == runners[first[1]-'0'] })
		runners[i].quit()
		w.sleep(time.Second)
		w.wantLeader(best)
	})
}

// The holder hears nothing of a standby when its connection is down, and the request goes on standing.
func TestYieldAfterOutage(t *testing.T) {
	inPriorityWorld(t, func(w *world) {
		w.run("a", nil, WithYield())
		w.sleep(time.Second)
		w.drop("a", leasetest.TheRequest)
		w.srv.CloseWatches(nil)
		w.run("b", nil, WithPriority(1))
		w.sleep(4 * time.Second)
		w.wantLeader("a")
		w.srv.Client("a").OnRequest(nil)
		w.sleep(4 * time.Second)
		w.wantLeader("b")
	})
}

// Work that winds down after a yield may lose the lease all the same; that is reported, and nothing is written
// afterwards.
func TestYieldThenLost(t *testing.T) {
	inPriorityWorld(t, func(w *world) {
		lost := make(chan error, 1)
		w.run("a", func(s Session) {
			<-s.Done()
			time.Sleep(time.Second)
			w.steal("thief")
			synctest.Wait()
			if s.ValidFor() != 0 {
				t.Errorf("valid for %v", s.ValidFor())
			}
			lost <- s.Release()
		}, WithYield())
		w.sleep(time.Second)
		w.run("b", nil, WithPriority(1))
		w.sleep(3 * time.Second)
		if err := <-lost; !errors.Is(err, ErrLost) {
			t.Errorf("Release: %v", err)
		}
		if w.holder() != "thief" {
			t.Errorf("held by %q", w.holder())
		}
	})
}

// A context that ended before a better candidate came keeps its cause; the lease still goes to that candidate.
func TestYieldAfterCtx(t *testing.T) {
	inPriorityWorld(t, func(w *world) {
		stopped := errors.New("stopped")
		ctx, cancel := context.WithCancelCause(w.Context())
		var cause error
		done := make(chan struct{})
		go func() {
			defer close(done)
			for s := range w.sequence(ctx, "a", WithYield()) {
				<-s.Done()
				time.Sleep(10 * time.Second)
				cause = s.Err()
			}
		}()
		w.sleep(time.Second)
		w.run("none", nil)
		cancel(stopped)
		w.run("b", nil, WithPriority(1))
		<-done
		if cause != stopped {
			t.Errorf("cause %v", cause)
		}
		w.wantLeader("b")
	})
}

// A request to hand over that comes while the work winds down already still says who is next.
func TestAskedToHandOverAfterCtx(t *testing.T) {
	inPriorityWorld(t, func(w *world) {
		a := w.run("a", func(s Session) {
			<-s.Done()
			time.Sleep(10 * time.Second)
		})
		w.sleep(time.Second)
		for _, identity := range []string{"c", "b", "d"} {
			w.run(identity, nil)
		}
		w.run("best", nil, WithPriority(1))
		w.sleep(time.Second)
		a.stop()
		w.sleep(time.Second)
		w.askToHandOver(w.acquired(), "b")
		<-a.done
		w.sleep(eps)
		w.wantLeader("b")
	})
}

// A standby whose registration was not answered is removed all the same when it leaves.
func TestRegistrationUnanswered(t *testing.T) {
	inPriorityWorld(t, func(w *world) {
		w.run("a", nil)
		w.sleep(time.Second)
		w.srv.Client("best").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "patch" {
				return leasetest.Fault{Drop: leasetest.TheReply}
			}
			return leasetest.Fault{}
		})
		best := w.run("best", nil, WithPriority(1))
		w.sleep(time.Minute)
		if got := w.lease().Annotations[annotation.Standby]; !strings.HasSuffix(got, " 1 best") {
			t.Fatalf("stands by: %q", got)
		}
		w.srv.Client("best").OnRequest(nil)
		best.quit()
		w.sleep(time.Second)
		if got, ok := w.lease().Annotations[annotation.Standby]; ok {
			t.Errorf("it has left, and stands by: %q", got)
		}
	})
}
