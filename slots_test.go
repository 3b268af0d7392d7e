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

	"github.com/leasehold-go/leasehold/leasetest"
)

// liveSlots returns the slots of live sessions, in order, as "slot:identity".
func (w *world) liveSlots() []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	var live []string
	for _, s := range w.sessions {
		if s.Err() == nil {
			live = append(live, fmt.Sprintf("%d:%s", s.Slot(), s.Holder().Identity))
		}
	}
	slices.Sort(live)
	return live
}

func (w *world) wantSlots(want ...string) {
	w.Helper()
	if got := w.liveSlots(); !slices.Equal(got, want) {
		w.Fatalf("%v: the slots are held as %q, want %q", time.Now(), got, want)
	}
}

// slotHolder returns who holds the Lease of a slot, "" for nobody.
func (w *world) slotHolder(slot int) string {
	if l := w.srv.Lease(ns, slotName(name, slot)); l != nil && l.Spec.HolderIdentity != nil {
		return *l.Spec.HolderIdentity
	}
	return ""
}

// Each candidate takes the lowest slot that is free, at once, and no more than one.
func TestSlots(t *testing.T) {
	inWorld(t, func(w *world) {
		slots := WithSlots(3)
		a := w.run("a", nil, slots)
		w.wantSlots("0:a")
		b := w.run("b", nil, slots)
		w.run("c", nil, slots)
		w.wantSlots("0:a", "1:b", "2:c")
		d := w.run("d", nil, slots)
		w.sleep(time.Hour)
		w.wantSlots("0:a", "1:b", "2:c")
		if got := w.session(1).Holder().Name; got != name+"-1" {
			t.Errorf("slot 1 is the Lease %q", got)
		}
		b.quit()
		w.wantSlots("0:a", "1:d", "2:c")
		a.quit()
		d.quit()
		w.run("e", nil, slots)
		w.wantSlots("0:e", "2:c")
	})
}

func TestSlotsOfOne(t *testing.T) {
	inWorld(t, func(w *world) {
		w.run("a", nil, WithSlots(1))
		w.wantSlots("0:a")
		w.run("b", nil, WithSlots(1))
		w.sleep(D)
		w.wantSlots("0:a")
		if w.slotHolder(0) != "a" || w.srv.Lease(ns, name) != nil {
			t.Errorf("slot 0 of one is held by %q; Lease without a number: %v", w.slotHolder(0), w.srv.Lease(ns, name))
		}
		if got := (Session{}).Slot(); got != 0 {
			t.Errorf("the zero session has slot %d", got)
		}
	})
}

// How a slot becomes free, and that another candidate has it then, in the time that a single lease takes.
func TestSlotsFree(t *testing.T) {
	crash := func(w *world) { w.cut("b") }
	for _, tt := range []struct {
		name   string
		free   func(w *world)
		within time.Duration
		want   []string
	}{
		{"its holder crashes", crash, D, []string{"0:a", "1:d", "2:c"}},
		{"its Lease is deleted", func(w *world) {
			w.srv.Delete(ns, slotName(name, 1))
		}, D, []string{"0:a", "1:d", "2:c"}},
		{"it is given to somebody else by hand, who does not renew", func(w *world) {
			w.srv.Edit(ns, slotName(name, 1), func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = new("thief") })
		}, D, []string{"0:a", "1:d", "2:c"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				for _, identity := range []string{"a", "b", "c", "d"} {
					w.run(identity, nil, WithSlots(3))
					synctest.Wait()
				}
				w.sleep(time.Minute)
				tt.free(w)
				w.sleep(tt.within + I)
				if got := w.liveSlots(); !slices.Contains(got, "0:a") || !slices.Contains(got, "2:c") || len(got) != 3 {
					t.Errorf("held as %q", got)
				}
			})
		})
	}
}

// cut keeps a client from the API server.
func (w *world) cut(client string) {
	w.drop(client, leasetest.TheRequest)
}

// A claim that takes effect long after it was given up acquires a slot beside the one that the candidate holds by then.
// It is released at once: a session holds one slot, and others need not wait for the other to expire.
func TestSlotsStrayClaim(t *testing.T) {
	inWorld(t, func(w *world) {
		late := true
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "create" && late {
				late = false
				return leasetest.Fault{Before: 30 * time.Second, Late: true}
			}
			return leasetest.Fault{}
		})
		a := w.run("a", nil, WithSlots(2))
		w.sleep(20 * time.Second)
		w.wantSlots("1:a")
		var held, freed time.Time
		w.srv.OnCommit(func(c leasetest.Change) {
			if c.New.Name == slotName(name, 0) && c.New.Spec.HolderIdentity != nil {
				held = time.Now()
			} else if c.New.Name == slotName(name, 0) {
				freed = time.Now()
			}
		})
		w.sleep(11 * time.Second)
		if held.IsZero() || freed.IsZero() || freed.Sub(held) > eps {
			t.Errorf("acquired at %v, released at %v", held, freed)
		}
		w.wantSlots("1:a")
		w.run("b", nil, WithSlots(2))
		w.wantSlots("0:b", "1:a")
		a.quit()
	})
}

// A claim that took effect without a reply is not left behind for another slot.
func TestSlotsDoubt(t *testing.T) {
	for _, verb := range []string{"create", "apply"} {
		t.Run(verb, func(t *testing.T) {
			inWorld(t, func(w *world) {
				if verb == "apply" {
					for slot := range 2 {
						w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns,
							Name: slotName(name, slot)}})
					}
				}
				lost := false
				w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					if r.Verb == verb && !lost {
						lost = true
						return leasetest.Fault{Drop: leasetest.TheReply}
					}
					return leasetest.Fault{}
				})
				a := w.run("a", nil, WithSlots(2))
				w.sleep(R/3 + time.Second)
				w.wantSlots("0:a")
				if got := w.slotHolder(1); got != "" {
					t.Errorf("slot 1 is held by %q", got)
				}
				a.quit()
			})
		})
	}
}

// A claim that took effect without a reply is kept, although a slot with a lower number has become free.
func TestSlotsDoubtPrefersItsOwn(t *testing.T) {
	inWorld(t, func(w *world) {
		z := w.run("z", nil, WithSlots(2))
		w.wantSlots("0:z")
		lost := false
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "create" && !lost {
				lost = true
				return leasetest.Fault{Drop: leasetest.TheReply}
			}
			return leasetest.Fault{}
		})
		w.run("a", nil, WithSlots(2))
		w.sleep(time.Second)
		z.quit()
		w.sleep(R / 3)
		w.wantSlots("1:a")
	})
}

// A slot whose Lease cannot be written does not keep a candidate from the others.
func TestSlotsOneForbidden(t *testing.T) {
	inWorld(t, func(w *world) {
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "create" && r.Lease.Name == slotName(name, 0) {
				return leasetest.Fault{Err: leasetest.Forbidden(r)}
			}
			return leasetest.Fault{}
		})
		w.run("a", nil, WithSlots(3))
		w.sleep(time.Second)
		w.wantSlots("1:a")
	})
}

// Candidates that disagree about the number of slots share those that all know; the largest number holds.
func TestSlotsDisagree(t *testing.T) {
	inWorld(t, func(w *world) {
		var three, five []*runner
		for i := range 6 {
			three = append(three, w.run(fmt.Sprint("old", i), nil, WithSlots(3)))
		}
		w.sleep(time.Minute)
		if got := w.liveSlots(); len(got) != 3 {
			t.Errorf("three slots are held as %q", got)
		}
		for i := range 6 {
			five = append(five, w.run(fmt.Sprint("new", i), nil, WithSlots(5)))
		}
		w.sleep(time.Minute)
		if got := w.liveSlots(); len(got) != 5 {
			t.Errorf("five slots are held as %q", got)
		}
		for _, c := range five {
			c.quit()
			w.sleep(time.Second) // who waits may have the slot now, and must not quit in the same instant
		}
		w.sleep(time.Minute)
		if got := w.liveSlots(); len(got) != 3 {
			t.Errorf("three slots again are held as %q", got)
		}
		for _, c := range three {
			c.quit()
			w.sleep(time.Second)
		}
	})
}

func TestTryAcquireSlots(t *testing.T) {
	inWorld(t, func(w *world) {
		var sessions []Session
		for i, identity := range []string{"a", "b"} {
			s, err := TryAcquire(w.Context(), w.options(identity, WithSlots(2))...)
			if err != nil || s.Slot() != i {
				t.Fatalf("%s: slot %d, %v", identity, s.Slot(), err)
			}
			w.enter(s)
			sessions = append(sessions, s)
		}
		_, err := TryAcquire(w.Context(), w.options("c", WithSlots(2))...)
		if want := `leasehold: lease held: all 2 slots, by "a" (another session of this process), ` +
			`"b" (another session of this process)`; !errors.Is(err, ErrHeld) || err.Error() != want {
			t.Errorf("err = %v, want %s", err, want)
		}
		sessions[1].Release()
		s, err := TryAcquire(w.Context(), w.options("c", WithSlots(2))...)
		if err != nil || s.Slot() != 1 {
			t.Errorf("slot %d, %v", s.Slot(), err)
		}
		s.Release()
		sessions[0].Release()
		slot, err := Do(w.Context(), func(ctx context.Context) (int, error) {
			s, _ := FromContext(ctx)
			return s.Slot(), nil
		}, w.options("d", WithSlots(2))...)
		if slot != 0 || err != nil {
			t.Errorf("Do in slot %d, %v", slot, err)
		}
	})
}

func TestVacateSlots(t *testing.T) {
	inWorld(t, func(w *world) {
		for _, identity := range []string{"a", "dead", "dead"} {
			w.run(identity, nil, WithSlots(3))
			synctest.Wait()
		}
		w.wantSlots("0:a", "1:dead", "2:dead")
		if freed, err := Vacate(w.Context(), w.options("dead", WithSlots(3))...); !freed || err != nil {
			t.Errorf("freed %v, %v", freed, err)
		}
		w.wantSlots("0:a")
		if freed, err := Vacate(w.Context(), w.options("nobody", WithSlots(3))...); freed || err != nil {
			t.Errorf("freed %v, %v", freed, err)
		}
	})
}

func TestHoldersSlots(t *testing.T) {
	inWorld(t, func(w *world) {
		ctx, cancel := context.WithCancel(w.Context())
		var seen []string
		done := make(chan struct{})
		go func() {
			defer close(done)
			for h := range Holders(ctx, w.options("observer", WithSlots(2))...) {
				seen = append(seen, strings.TrimPrefix(h.Name, name)+" "+h.Identity)
			}
		}()
		synctest.Wait()
		a := w.run("a", nil, WithSlots(2))
		w.sleep(time.Minute)
		b := w.run("b", nil, WithSlots(2))
		w.sleep(time.Minute)
		a.quit()
		synctest.Wait()
		b.quit()
		synctest.Wait()
		cancel()
		<-done
		want := []string{"-0 ", "-1 ", "-0 a", "-1 b", "-0 ", "-1 "}
		slices.Sort(seen[:min(2, len(seen))]) // either may be read first
		if !slices.Equal(seen, want) {
			t.Errorf("saw %q, want %q", seen, want)
		}
	})
}

// A candidate that waits for a slot sends nothing while nothing changes.
func TestSlotsQuiet_G12(t *testing.T) {
	inWorld(t, func(w *world) {
		for i := range 3 {
			w.run(fmt.Sprint(i), nil, WithSlots(3))
			synctest.Wait()
		}
		w.run("standby", nil, WithSlots(3))
		w.sleep(time.Minute)
		before := w.srv.Client("standby").Requests()
		w.sleep(time.Hour)
		if n := w.srv.Client("standby").Requests() - before; n != 0 {
			t.Errorf("%d requests in an hour", n)
		}
	})
}

// A panic in the program's code beside one slot ends the loop, as with a single lease, and nothing stays held.
func TestSlotsPanic_G13(t *testing.T) {
	inWorld(t, func(w *world) {
		got := panicOf(func() {
			recorder := WithEventRecorder(recorderFunc(func(string) { panic(errors.New("odd")) }))
			for s := range w.sequence(w.Context(), "a", WithSlots(2), recorder) {
				<-s.Done()
			}
		})
		if got == nil || w.slotHolder(0) != "" || w.slotHolder(1) != "" {
			t.Errorf("panic %v; held by %q, %q", got, w.slotHolder(0), w.slotHolder(1))
		}
	})
}

// Neither many slots that are free from the start nor many that are released at once make each of many candidates write
// for each of them.
func TestSlotsHerd(t *testing.T) {
	const slots, candidates = 20, 60
	inWorld(t, func(w *world) {
		claims := 0
		candidate := func(i int) *runner {
			identity := fmt.Sprint("c", i)
			w.srv.Client(identity).OnRequest(func(r leasetest.Request) leasetest.Fault {
				if r.Verb == "create" || r.Verb == "apply" {
					w.mu.Lock()
					defer w.mu.Unlock()
					claims++
				}
				return leasetest.Fault{Before: time.Duration(500+i*7%60) * time.Microsecond, After: time.Millisecond}
			})
			return w.run(identity, nil, WithSlots(slots))
		}
		want := func(what string, most int) {
			w.Helper()
			w.sleep(time.Second)
			t.Logf("%s: %d claims", what, claims)
			if got := len(w.liveSlots()); got != slots || claims > most {
				t.Errorf("%s: %d claims, want %d at most; %d slots are held", what, claims, most, got)
			}
			claims = 0
		}
		runners := map[string]*runner{}
		for i := range candidates {
			runners[fmt.Sprint("c", i)] = candidate(i)
		}
		want("the start", 4*candidates)
		w.sleep(time.Minute)
		var leaders []*runner
		for _, live := range w.liveSlots() {
			_, identity, _ := strings.Cut(live, ":")
			leaders = append(leaders, runners[identity])
		}
		for _, c := range leaders {
			c.stop()
		}
		want("all released", 4*candidates)
		for _, c := range runners {
			c.stop()
		}
		for _, c := range runners {
			<-c.done
		}
	})
}

// 90 candidates for 30 slots: never more than 30 at once, each gets its turn, and a released one costs few writes.
func TestSlotsFleet(t *testing.T) {
	t.Parallel()
	inWorld(t, func(w *world) {
		candidates, slots := 90, 30
		if testing.Short() {
			candidates, slots = 24, 8
		}
		var runners []*runner
		led := map[string]int{}
		claims, live, most := 0, 0, 0
		for i := range candidates {
			identity := fmt.Sprint("c", i)
			w.srv.Client(identity).OnRequest(func(r leasetest.Request) leasetest.Fault {
				if r.Verb == "create" || r.Verb == "apply" {
					w.mu.Lock()
					defer w.mu.Unlock()
					claims++
				}
				return leasetest.Fault{Before: time.Duration(500+i) * time.Microsecond, After: time.Millisecond}
			})
			runners = append(runners, w.run(identity, func(s Session) {
				w.mu.Lock()
				led[identity]++
				live++
				most = max(most, live)
				w.mu.Unlock()
				select {
				case <-s.Done():
				case <-time.After(time.Duration(20+i%7) * time.Second):
				}
				w.mu.Lock()
				live--
				w.mu.Unlock()
			}, WithSlots(slots)))
		}
		turns := func() int {
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(led)
		}
		w.sleep(10 * time.Minute)
		for range 5 { // chance decides who is next
			if turns() < candidates {
				w.sleep(10 * time.Minute)
			}
		}
		for _, c := range runners {
			c.stop()
		}
		for _, c := range runners {
			<-c.done
		}
		terms := w.count()
		t.Logf("%d terms, %d claims, at most %d at once, led %v", terms, claims, most, led)
		if most != slots {
			t.Errorf("at most %d sessions at once, want %d", most, slots)
		}
		if len(led) != candidates {
			t.Errorf("%d of %d candidates had their turn", len(led), candidates)
		}
		if claims > 5*terms {
			t.Errorf("%d claims for %d terms", claims, terms)
		}
	})
}
