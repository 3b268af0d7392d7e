package leasehold

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v4"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/internal/oracle"
	"github.com/leasehold-go/leasehold/internal/shards"
	"github.com/leasehold-go/leasehold/leasetest"
)

// A fleet is a group in virtual time. In every test a judge watches over the exclusion of each key, and over the order
// of tokens.
type fleet struct {
	*world
	judge *oracle.Keys[Session]
	began time.Time

	mu     sync.Mutex // protects following
	starts map[string]int
}

func inFleet(t *testing.T, test func(f *fleet)) {
	t.Helper()
	inWorld(t, func(w *world) {
		f := &fleet{world: w, began: time.Now(), starts: map[string]int{}}
		f.judge = oracle.NewKeys(func(_ *oracle.Work[Session], fault string) { f.Errorf("%v: %s", time.Now(), fault) })
		w.srv.OnCommit(func(leasetest.Change) {})
		test(f)
	})
}

// enterKey says that a session of key begins at a member; leave that its work has returned. While the member's lease is
// trusted it may write, even if the session's context has ended.
func (f *fleet) enterKey(s Session, key, member string) (leave func()) {
	w := &oracle.Work[Session]{
		Key: key, Worker: member, Session: s, Token: s.FencingToken(), Since: time.Since(f.began),
		Live: func() bool { return s.Err() == nil || s.ValidFor() > 0 },
	}
	f.judge.Begin(w)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.starts[key]++
	return func() { f.judge.End(w) }
}

// begun returns how many sessions of key there were.
func (f *fleet) begun(key string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.starts[key]
}

// owners returns who has a session of which keys whose context has not ended.
func (f *fleet) owners() map[string][]string {
	owners := map[string][]string{}
	for _, w := range f.judge.Live() {
		if w.Session.Err() == nil {
			owners[w.Worker] = append(owners[w.Worker], w.Key)
		}
	}
	for _, keys := range owners {
		slices.Sort(keys)
	}
	return owners
}

// sessionsOf returns the sessions of a member whose context has not ended.
func (f *fleet) sessionsOf(member string) (of []Session) {
	for _, w := range f.judge.Live() {
		if w.Worker == member && w.Session.Err() == nil {
			of = append(of, w.Session)
		}
	}
	return of
}

// shape describes who has keys, and how many: the most first.
func (f *fleet) shape() string {
	owners := f.owners()
	var counts []int
	for _, keys := range owners {
		counts = append(counts, len(keys))
	}
	slices.Sort(counts)
	slices.Reverse(counts)
	return fmt.Sprint(strings.Join(slices.Sorted(maps.Keys(owners)), " "), counts)
}

// spread starts a member whose work lasts until its session ends.
func (f *fleet) spread(member string, keys <-chan []string, opts ...Option) *runner {
	return f.spreadWork(member, keys, func(s Session, key string) error {
		<-s.Done()
		return nil
	}, opts...)
}

func (f *fleet) spreadWork(
	member string, keys <-chan []string, work func(Session, string) error, opts ...Option,
) *runner {
	ctx, cancel := context.WithCancel(f.Context())
	c := &runner{stop: cancel, done: make(chan struct{})}
	var working sync.Map // the keys that it works on
	go func() {
		defer close(c.done)
		c.err = Spread(ctx, keys, func(s Session, key string) error {
			if _, busy := working.LoadOrStore(key, true); busy {
				f.Errorf("%v: %s begins %s beside its own work of earlier", time.Now(), member, key)
			}
			defer f.enterKey(s, key, member)()
			defer working.Delete(key)
			return work(s, key)
		}, f.options(member, opts...)...)
	}()
	synctest.Wait()
	return c
}

func numbered(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("key-%04d", i)
	}
	return keys
}

func (f *fleet) wantShape(want string) {
	f.Helper()
	if got := f.shape(); got != want {
		f.Errorf("%v: members have %q, want %q", time.Now(), got, want)
	}
}

func TestSpread(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys(numbered(10)...))
		f.sleep(2 * time.Second)
		f.wantShape("a[10]")
		b := f.spread("b", Keys(numbered(10)...))
		f.sleep(I + time.Second)
		f.wantShape("a b[5 5]")
		c := f.spread("c", Keys(numbered(10)...))
		f.sleep(I + time.Second)
		f.wantShape("a b c[4 3 3]")
		b.quit()
		f.sleep(time.Second)
		f.wantShape("a c[5 5]")
		a.quit()
		f.sleep(time.Second)
		f.wantShape("c[10]")
		c.quit()
		f.wantShape("[]")
		for _, r := range []*runner{a, b, c} {
			if r.err != context.Canceled {
				f.Errorf("error %v", r.err)
			}
		}
	})
}

// owned returns how many keys have a live session.
func (f *fleet) owned() (n int) {
	for _, keys := range f.owners() {
		n += len(keys)
	}
	return n
}

// await returns how long it took until n keys have a live session.
func (f *fleet) await(n int, limit time.Duration) time.Duration {
	began := time.Now()
	for f.owned() != n && time.Since(began) < limit {
		f.sleep(10 * time.Millisecond)
	}
	return time.Since(began)
}

// S1: in a steady state each member sends its renewals and nothing else, however many keys there are.
func TestGroupQuiet_S1(t *testing.T) {
	t.Parallel()
	inFleet(t, func(f *fleet) {
		const members = 4
		hours := long(2 * time.Hour)
		var runners []*runner
		for i := range members {
			runners = append(runners, f.spread(fmt.Sprint("m", i), Keys(numbered(1000)...)))
		}
		f.sleep(time.Minute)
		f.wantShape("m0 m1 m2 m3[250 250 250 250]")
		requests := func() (n int) {
			for i := range members {
				n += f.srv.Client(fmt.Sprint("m", i)).Requests()
			}
			return n
		}
		before := requests()
		f.sleep(hours)
		sent := requests() - before
		if most := int(hours * members / (I * 9 / 10)); sent > most || sent < most*8/10 {
			f.Errorf("%d requests in %v, want the renewals of %d members, at most %d", sent, hours, members, most)
		}
		for _, r := range runners {
			r.quit()
		}
	})
}

// S1: in a steady state the keys are not planned again: what a member costs does not grow with them.
func TestGroupPlansNothing_S1(t *testing.T) {
	inFleet(t, func(f *fleet) {
		var monitor Monitor
		var runners []*runner
		for i := range 3 {
			runners = append(runners, f.spread(fmt.Sprint("m", i), Keys(numbered(30)...), WithMonitor(&monitor)))
		}
		f.sleep(time.Minute)
		planned := func() (plans []*shards.Plan) {
			synctest.Wait()
			for _, g := range monitor.allGroups() {
				if p := g.present.assigner.planned; p != nil {
					plans = append(plans, p)
				}
			}
			return plans
		}
		before := planned()
		if len(before) != 1 {
			f.Fatalf("%d members have planned, want the one that assigns", len(before))
		}
		f.sleep(10 * time.Minute)
		if after := planned(); !slices.Equal(before, after) {
			f.Errorf("the keys were planned again: %p, before %p", after, before)
		}
		runners[1].quit()
		f.sleep(time.Minute)
		f.wantShape("m0 m2[15 15]")
		if after := planned(); len(after) == 1 && after[0] == before[0] {
			f.Error("a member has left, and nothing was planned")
		}
		for _, r := range runners {
			r.quit()
		}
	})
}

// S4: the keys of a member that crashed, also of the one that assigns, are owned again within D + 1 s.
func TestGroupCrash_S4(t *testing.T) {
	for crash := range 3 {
		t.Run(fmt.Sprint(crash), func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				var runners []*runner
				for i := range 3 {
					runners = append(runners, f.spread(fmt.Sprint("m", i), Keys(numbered(30)...)))
					f.sleep(time.Second)
				}
				f.sleep(2 * I)
				f.wantShape("m0 m1 m2[10 10 10]")
				f.srv.Client(fmt.Sprint("m", crash)).Partition(true)
				f.sleep(R + eps)
				if took := f.await(30, 2*D); R+eps+took > D+time.Second {
					f.Errorf("owned again after %v, want at most %v", R+eps+took, D+time.Second)
				}
				f.srv.Client(fmt.Sprint("m", crash)).Partition(false)
				f.sleep(3 * D)
				f.wantShape("m0 m1 m2[10 10 10]") // it is back
				for _, r := range runners {
					r.quit()
				}
			})
		})
	}
}

// The assigner and the next in line crash together: the others find out one after the other.
func TestGroupCrashOfTwo_S4(t *testing.T) {
	inFleet(t, func(f *fleet) {
		var runners []*runner
		for i := range 4 {
			runners = append(runners, f.spread(fmt.Sprint("m", i), Keys(numbered(40)...)))
			f.sleep(time.Second)
		}
		f.sleep(3 * I)
		f.wantShape("m0 m1 m2 m3[10 10 10 10]")
		for _, name := range []string{"m0", "m1"} {
			f.srv.Client(name).Partition(true)
		}
		f.sleep(R + eps)
		if took := f.await(40, 3*D); R+eps+took > 2*D+time.Second {
			f.Errorf("owned again after %v, want at most %v", R+eps+took, 2*D+time.Second)
		}
		f.wantShape("m2 m3[20 20]")
		for _, r := range runners {
			r.quit()
		}
	})
}

// The table follows the fence at once: it does not wait for a watch, nor for anything else.
func TestGroupCrashAtOnce_S4(t *testing.T) {
	inFleet(t, func(f *fleet) {
		var runners []*runner
		for i := range 3 {
			member := fmt.Sprint("m", i)
			f.srv.Client(member).OnEvent(func(watch.Event) time.Duration { return 50 * time.Millisecond })
			runners = append(runners, f.spread(member, Keys(numbered(30)...)))
			f.sleep(time.Second)
		}
		f.sleep(2 * I)
		var fence, table time.Time
		f.srv.OnCommit(func(c leasetest.Change) {
			switch {
			case c.New.Name == name && table.IsZero() && !fence.IsZero():
				table = c.Time
			case c.New.Name != name && (c.New.Spec.HolderIdentity == nil || *c.New.Spec.HolderIdentity == ""):
				fence = c.Time
			}
		})
		f.srv.Client("m1").Partition(true)
		f.sleep(D + time.Second)
		f.wantShape("m0 m2[15 15]")
		if took := table.Sub(fence); fence.IsZero() || took != 0 {
			f.Errorf("fenced at %v, and the table written %v later", fence, took)
		}
		for _, r := range runners {
			r.quit()
		}
	})
}

// When another member assigns, the others but the next in line do no more than read its Lease, although they saw it
// when they joined, long ago.
func TestGroupAssignerChanges_S1(t *testing.T) {
	inFleet(t, func(f *fleet) {
		const members = 8
		var runners []*runner
		var own [members]string // Leases
		for i := range members {
			runners = append(runners, f.spread(fmt.Sprint("m", i), Keys(numbered(16)...)))
			f.sleep(time.Second)
		}
		f.sleep(2 * D)
		for i := range members {
			own[i] = f.sessionsOf(fmt.Sprint("m", i))[0].Holder().Name
		}
		var mu sync.Mutex
		did := map[string]bool{}
		for i := range members {
			f.srv.Client(fmt.Sprint("m", i)).OnRequest(func(r leasetest.Request) leasetest.Fault {
				if r.Verb == "list" || r.Verb == "patch" && r.Name != name && r.Name != own[i] {
					mu.Lock()
					defer mu.Unlock()
					did[fmt.Sprint("m", i, " ", r.Verb)] = true
				}
				return leasetest.Fault{}
			})
		}
		for i := range 3 {
			runners[i].quit()
			f.sleep(2 * D)
			mu.Lock()
			if len(did) > 2 {
				f.Errorf("m%d has left, and others did %v", i, slices.Sorted(maps.Keys(did)))
			}
			clear(did)
			mu.Unlock()
		}
		for _, r := range runners {
			r.quit()
		}
	})
}

// Members that could not reach the API server resume what they had, with new tokens, by a number of writes that does
// not grow with the keys (S5).
func TestGroupOutage_S5(t *testing.T) {
	inFleet(t, func(f *fleet) {
		var runners []*runner
		for i := range 3 {
			runners = append(runners, f.spread(fmt.Sprint("m", i), Keys(numbered(300)...)))
			f.sleep(time.Second)
		}
		f.sleep(3 * I)
		before := f.owners()
		cut := func(cut bool) {
			for i := range 3 {
				f.srv.Client(fmt.Sprint("m", i)).Partition(cut)
			}
		}
		cut(true)
		f.sleep(R + time.Second)
		f.wantShape("[]")
		cut(false)
		version := f.srv.ResourceVersion()
		if took := f.await(300, time.Minute); took > 10*time.Second {
			f.Errorf("resumed after %v", took)
		}
		f.sleep(I)
		if writes := number(f.srv.ResourceVersion()) - number(version); writes > 40 {
			f.Errorf("%d writes for 3 members", writes)
		}
		if after := f.owners(); !maps.EqualFunc(before, after, slices.Equal) {
			f.Errorf("the members resumed %v, had %v", after, before)
		}
		for _, r := range runners {
			r.quit()
		}
	})
}

func number(version string) (n int) {
	fmt.Sscan(version, &n)
	return n
}

// S3, S5: a member that joins moves exactly the surplus, in few writes, renewals included, where work returns within
// 200 ms and requests take some time.
func TestGroupJoin_S3(t *testing.T) {
	inFleet(t, func(f *fleet) {
		slowly := func(member string) *runner {
			f.srv.Client(member).OnRequest(func(leasetest.Request) leasetest.Fault {
				return leasetest.Fault{Before: 2 * time.Millisecond, After: 3 * time.Millisecond}
			})
			return f.spreadWork(member, Keys(numbered(1000)...), func(s Session, key string) error {
				<-s.Done()
				n, _ := strconv.Atoi(key[len("key-"):])
				time.Sleep(time.Duration(n%200) * time.Millisecond)
				return nil
			})
		}
		var runners []*runner
		for i := range 4 {
			runners = append(runners, slowly(fmt.Sprint("m", i)))
		}
		f.sleep(time.Minute)
		begun := func() (n int) {
			f.mu.Lock()
			defer f.mu.Unlock()
			for _, starts := range f.starts {
				n += starts
			}
			return n
		}
		before, version := begun(), number(f.srv.ResourceVersion())
		runners = append(runners, slowly("m4"))
		for end := time.Now().Add(D); f.shape() != "m0 m1 m2 m3 m4[200 200 200 200 200]" && time.Now().Before(end); {
			f.sleep(10 * time.Millisecond)
		}
		f.wantShape("m0 m1 m2 m3 m4[200 200 200 200 200]")
		if moves := begun() - before; moves != 200 {
			f.Errorf("%d keys moved, want 200", moves)
		}
		if writes := number(f.srv.ResourceVersion()) - version; writes > 20 {
			f.Errorf("%d writes, want at most 20", writes)
		} else {
			f.Logf("%d writes", writes)
		}
		for _, r := range runners {
			r.quit()
		}
	})
}

var rolloutMembers = flag.Int("rollout.members", 10, "of how many members TestGroupRollout replaces each")

// A rollout moves each key about once, also where its steps take longer than a new member settles.
func TestGroupRollout(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		newFirst      bool
		within, after time.Duration // between the two of a step, and after it
		least, most   float64       // moves of each key
		opts          []Option
	}{
		{"new before old", true, 2 * time.Second, 2 * time.Second, 1, 1.2, nil},
		{"new before old, slowly", true, 8 * time.Second, 3 * time.Second, 1, 1.3, nil},
		{"new before old, one after the other", true, 12 * time.Second, 0, 1, 1.3, nil},
		{"new before old, and balance is wanted at once", true, 8 * time.Second, 3 * time.Second, 1.5, 2,
			[]Option{WithSettle(0)}},
		{"old before new", false, 2 * time.Second, 2 * time.Second, 1, 1.3, nil},
		{"old before new, slowly", false, 3 * time.Second, 8 * time.Second, 1, 1.4, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				members, keys := *rolloutMembers, 20**rolloutMembers
				var old, fresh []*runner
				spread := func(member string) *runner { return f.spread(member, Keys(numbered(keys)...), c.opts...) }
				for i := range members {
					old = append(old, spread(fmt.Sprint("old", i)))
				}
				f.sleep(time.Minute)
				for i := range members {
					join := func() { fresh = append(fresh, spread(fmt.Sprint("new", i))) }
					first, second := join, old[i].quit
					if !c.newFirst {
						first, second = second, first
					}
					first()
					f.sleep(c.within)
					second()
					f.sleep(c.after)
				}
				f.sleep(time.Minute)
				owners := f.owners()
				if len(owners) != members {
					f.Errorf("%d members own keys, want %d", len(owners), members)
				}
				for member, owned := range owners {
					if !strings.HasPrefix(member, "new") || len(owned) != 20 {
						f.Errorf("%s owns %d keys, want a new member with 20", member, len(owned))
					}
				}
				f.mu.Lock()
				moves := -keys
				for _, starts := range f.starts {
					moves += starts
				}
				f.mu.Unlock()
				f.Logf("%.2f moves of each key", float64(moves)/float64(keys))
				if each := float64(moves) / float64(keys); each < c.least || each > c.most {
					f.Errorf("%.2f moves of each key, want %.1f to %.1f", each, c.least, c.most)
				}
				for _, r := range fresh {
					r.quit()
				}
			})
		})
	}
}

// The set of keys changes: work of keys that went stops, and new ones begin.
func TestSpreadKeysChange(t *testing.T) {
	inFleet(t, func(f *fleet) {
		sets := make(chan []string, 1)
		set := []string{"x", "y"}
		sets <- set
		a := f.spread("a", sets)
		f.sleep(2 * time.Second)
		set[0] = "changed" // the slice was copied
		f.wantShape("a[2]")
		sets <- []string{"y", "z"}
		f.sleep(2 * time.Second)
		if owners := f.owners()["a"]; !slices.Equal(owners, []string{"y", "z"}) {
			f.Errorf("keys %v", owners)
		}
		if f.begun("y") != 1 {
			f.Errorf("y began %d times", f.begun("y"))
		}
		sets <- []string{"z", "z"} // refused, and logged
		f.sleep(2 * time.Second)
		f.wantShape("a[2]")
		if f.logged(`key \"z\" is there twice`) != 1 {
			f.Error("no line about the set that was refused")
		}
		sets <- nil
		f.sleep(2 * time.Second)
		f.wantShape("[]")
		if n := f.logged("this member knows no keys"); n != 1 {
			f.Errorf("%d lines about the empty set, want 1", n)
		}
		sets <- []string{"w"}
		close(sets)
		f.sleep(2 * time.Second)
		if owners := f.owners()["a"]; !slices.Equal(owners, []string{"w"}) {
			f.Errorf("keys %v", owners)
		}
		a.quit()
	})
}

// A member without keys says so, and takes part: another that knows some has them.
func TestSpreadNoKeys(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys[string]())
		f.sleep(I)
		f.wantShape("[]")
		if n := f.logged("this member knows no keys"); n != 1 {
			f.Errorf("%d lines about the empty set, want 1", n)
		}
		b := f.spread("b", Keys("x", "y"))
		f.sleep(2 * I)
		f.wantShape("b[2]")
		a.quit()
		b.quit()
		if a.err != context.Canceled {
			f.Errorf("error %v", a.err)
		}
	})
}

// A key goes only to a member that knows it.
func TestSpreadDifferentKeys(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys("x", "y", "z"))
		b := f.spread("b", Keys("z", "new"))
		f.sleep(3 * I)
		owners := f.owners()
		if !slices.Contains(owners["b"], "new") || !slices.Contains(owners["a"], "x") ||
			!slices.Contains(owners["a"], "y") {
			f.Errorf("owners %v", owners)
		}
		f.wantShape("a b[2 2]")
		a.quit()
		f.sleep(2 * time.Second)
		if got := f.owners()["b"]; !slices.Equal(got, []string{"new", "z"}) {
			f.Errorf("b has %v", got)
		}
		b.quit()
	})
}

// Work that returns gives its key back, and it is given out again after a pause that grows with each error.
func TestSpreadWorkReturns(t *testing.T) {
	for _, c := range []struct {
		name  string
		err   error
		least int
		most  int
	}{
		{"nil", nil, 2, 80},
		{"an error", errors.New("poisoned"), 2, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				runs := 0
				a := f.spreadWork("a", Keys("x"), func(s Session, key string) error {
					runs++
					return c.err
				})
				f.sleep(time.Minute)
				if runs < c.least || runs > c.most {
					f.Errorf("%d runs in a minute, want %d to %d", runs, c.least, c.most)
				}
				a.quit()
			})
		})
	}
}

// Release of a session gives its key back, and so does HandOver. The key is given on once the work has returned.
func TestSpreadRelease(t *testing.T) {
	for _, c := range []struct {
		name    string
		release func(Session) error
	}{
		{"Release", Session.Release},
		{"HandOver", func(s Session) error { return s.HandOver("b") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				var monitor Monitor
				finish := make(chan struct{})
				a := f.spreadWork("a", Keys("x", "y"), func(s Session, key string) error {
					if key == "y" || f.begun(key) > 1 {
						<-s.Done()
						return nil
					}
					for range 2 { // again does nothing
						err := c.release(s)
						if err != nil || s.Context().Err() == nil || !errors.Is(s.Err(), ErrReleased) {
							f.Errorf("error %v; the session: %v", err, s.Err())
						}
					}
					if s.ValidFor() == 0 {
						f.Error("the work is to end, and may not write")
					}
					<-finish
					return nil
				}, WithMonitor(&monitor))
				f.sleep(2 * D)
				f.wantShape("a[1]")
				if f.begun("x") != 1 {
					f.Errorf("%d sessions of x before the work of the first has returned", f.begun("x"))
				}
				close(finish)
				f.sleep(I / 4)
				if s := monitor.Groups()[0]; s.Unowned != 1 || s.Owned != 1 || s.Ended["returned"] != 1 {
					f.Errorf("the key was not given back: %+v", s)
				}
				f.sleep(D)
				f.wantShape("a[2]")
				a.quit()
			})
		})
	}
}

// An error that is wrapped by backoff.Permanent ends Spread, once all work has returned.
func TestSpreadPermanent(t *testing.T) {
	inFleet(t, func(f *fleet) {
		broken := errors.New("broken")
		var running atomic.Int32
		a := f.spreadWork("a", Keys("x", "y", "z"), func(s Session, key string) error {
			if key == "x" {
				time.Sleep(time.Minute)
				return backoff.Permanent(broken)
			}
			running.Add(1)
			<-s.Done()
			time.Sleep(time.Second)
			running.Add(-1)
			return nil
		})
		<-a.done
		if a.err != broken || running.Load() != 0 {
			f.Errorf("error %v, %d works running", a.err, running.Load())
		}
	})
}

// A panic of the work goes on where Spread was called.
func TestSpreadPanics(t *testing.T) {
	inFleet(t, func(f *fleet) {
		defer func() {
			if r := recover(); r != "worked" {
				f.Errorf("recovered %v", r)
			}
			f.sleep(time.Second)
		}()
		Spread(f.Context(), Keys("x", "y"), func(s Session, key string) error {
			if key == "x" {
				panic("worked")
			}
			<-s.Done()
			return nil
		}, f.options("a")...)
	})
}

// Work that ignores the end of its session keeps only its own key from the member when it joins again.
func TestSpreadStuckWork(t *testing.T) {
	inFleet(t, func(f *fleet) {
		stuck := make(chan struct{})
		var m Monitor
		a := f.spreadWork("a", Keys(numbered(5)...), func(s Session, key string) error {
			<-s.Done()
			if key == "key-0002" && f.begun(key) == 1 {
				<-stuck
			}
			return nil
		}, WithMonitor(&m))
		f.sleep(2 * time.Second)
		f.srv.Client("a").Partition(true)
		f.sleep(D)
		f.srv.Client("a").Partition(false)
		f.sleep(D)
		f.wantShape("a[4]")
		if err := m.Check(nil); err == nil || !strings.Contains(err.Error(), `"key-0002"`) {
			f.Errorf("Check: %v", err)
		}
		if n := f.logged("work goes on although its session ended"); n != 1 {
			f.Errorf("%d lines about the work that goes on", n)
		}
		g := m.Groups()[0]
		if g.Name != name || !g.Assigner || g.Keys != 5 || g.Owned != 4 || g.Unowned != 1 ||
			!slices.Equal(g.UnownedKeys, []string{"key-0002"}) || !slices.Equal(g.Overdue, []string{"key-0002"}) ||
			g.Sessions != 9 || !maps.Equal(g.Ended, map[string]uint64{"lost": 4}) {
			f.Errorf("status %+v", g)
		}
		f.sleep(3 * D)
		if f.logged("keys of the group have no owner") != 1 || f.logged("keys=[key-0002] count=1") != 2 {
			f.Error("the log does not name the key that nobody owns, once")
		}
		close(stuck)
		f.sleep(I)
		f.wantShape("a[5]")
		if err := m.Check(nil); err != nil {
			f.Errorf("Check: %v", err)
		}
		a.quit()
		if len(m.Groups()) != 0 {
			f.Errorf("groups %+v", m.Groups())
		}
	})
}

// WithMoves bounds how many keys move at once.
func TestSpreadMoves(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spreadWork("a", Keys(numbered(20)...), func(s Session, key string) error {
			<-s.Done()
			time.Sleep(2 * time.Second)
			return nil
		}, WithMoves(2))
		f.sleep(2 * time.Second)
		b := f.spread("b", Keys(numbered(20)...), WithMoves(2))
		least := 20
		for range 400 {
			f.sleep(100 * time.Millisecond)
			least = min(least, f.owned())
		}
		if least < 16 || least > 18 { // two that end, and two that have not begun
			f.Errorf("at one time %d of 20 keys were owned, want 16 to 18", least)
		}
		f.wantShape("a b[10 10]")
		a.quit()
		b.quit()
	})
}

// A member that did not hear of a new epoch, and whose Lease is deleted just before that opens, is waited out.
func TestGroupDeletedMember_G1(t *testing.T) {
	for _, early := range []time.Duration{time.Second, 5 * time.Second, D - time.Second} {
		t.Run(early.String(), func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				a := f.spread("a", Keys(numbered(4)...))
				f.sleep(3 * time.Second)
				next := f.spread("next", Keys(numbered(4)...))
				f.sleep(2 * I)
				b := f.spread("b", Keys(numbered(4)...)) // follows the assigner alone
				f.sleep(2 * I)
				f.wantShape("a b next[2 1 1]")
				deaf := f.srv.Client("b")
				deaf.OnEvent(func(watch.Event) time.Duration { return time.Hour })
				f.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Annotations[tableAnnotation] = "rubbish" })
				f.sleep(D - early)
				deaf.Partition(true)
				for _, l := range f.memberLeases() {
					if *l.Spec.HolderIdentity == "b" {
						f.srv.Delete(ns, l.Name)
					}
				}
				f.sleep(D - 2*time.Second)
				f.wantShape("[]")
				f.sleep(D)
				f.wantShape("a next[2 2]")
				deaf.OnEvent(nil)
				deaf.Partition(false)
				a.quit()
				b.quit()
				next.quit()
			})
		})
	}
}

// memberLeases returns the Leases of members.
func (f *fleet) memberLeases() (leases []coordinationv1.Lease) {
	list, err := f.srv.Client("operator").Leases(ns).List(f.Context(), metav1.ListOptions{})
	if err != nil {
		f.Fatal(err)
	}
	for _, l := range list.Items {
		if strings.HasPrefix(l.Name, name+"-m-") {
			leases = append(leases, l)
		}
	}
	return leases
}

// A table that has not changed for longer than the server remembers is followed without a request.
func TestGroupQuietAfterCompaction_S1(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys(numbered(4)...))
		b := f.spread("b", Keys(numbered(4)...))
		f.sleep(time.Minute)
		f.srv.Compact()
		for _, member := range []string{"a", "b"} {
			f.srv.Client(member).CloseWatches(nil)
		}
		f.sleep(time.Minute)
		before := f.srv.Client("a").Requests() + f.srv.Client("b").Requests()
		f.sleep(time.Minute)
		sent := f.srv.Client("a").Requests() + f.srv.Client("b").Requests() - before
		if most := int(2 * time.Minute / (I * 9 / 10)); sent > most {
			f.Errorf("%d requests in a minute, want the renewals of 2 members, at most %d", sent, most)
		}
		f.wantShape("a b[2 2]")
		a.quit()
		b.quit()
	})
}

// The assigner gives itself nothing that others could not find out of its Lease: one of them may find no table, and
// begin a new one.
func TestGroupAssignerReports_G1(t *testing.T) {
	inFleet(t, func(f *fleet) {
		client := f.srv.Client("a")
		client.OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "patch" && strings.HasPrefix(r.Name, name+"-m-") {
				return leasetest.Fault{Drop: leasetest.TheRequest}
			}
			return leasetest.Fault{}
		})
		a := f.spread("a", Keys(numbered(4)...))
		f.sleep(3 * time.Second)
		f.wantShape("[]")
		client.OnRequest(nil)
		f.sleep(2 * I)
		f.wantShape("a[4]")
		a.quit()
	})
}

// Tables, keys and reports that cannot be are written again, or do nothing.
func TestGroupRubbish(t *testing.T) {
	edit := func(f *fleet, lease, annotation, text string) {
		f.srv.Edit(ns, lease, func(l *coordinationv1.Lease) { l.Annotations[annotation] = text })
	}
	for _, c := range []struct {
		name string
		do   func(f *fleet)
	}{
		{"an empty table", func(f *fleet) { edit(f, name, tableAnnotation, "") }},
		{"a table of another cluster", func(f *fleet) {
			table, err := shards.DecodeTable(f.lease().Annotations[tableAnnotation])
			if err != nil {
				f.Fatal(err)
			}
			for i := range table.Rows {
				table.Rows[i].Seen, table.Rows[i].UID = 500_000_000, "another"
			}
			table.Assigner = table.Rows[0].Term
			edit(f, name, tableAnnotation, table.Encode())
		}},
		{"a page of keys without keys, and members that start again", func(f *fleet) {
			table, err := shards.DecodeTable(f.lease().Annotations[tableAnnotation])
			if err != nil {
				f.Fatal(err)
			}
			edit(f, name+"-k-"+table.Keys+"-0", keysAnnotation, "")
			for _, l := range f.memberLeases() {
				f.srv.Delete(ns, l.Name)
			}
		}},
		{"a report from nowhere", func(f *fleet) {
			f.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
				Namespace: ns, Name: name + "-m-ghost", Labels: map[string]string{groupLabel: name},
				Annotations: map[string]string{memberAnnotation: `{"v":1,"n":18446744073709551615,"e":77}`},
			}})
		}},
		{"a report that cannot be read", func(f *fleet) {
			for _, l := range f.memberLeases() {
				edit(f, l.Name, memberAnnotation, "rubbish")
			}
		}},
		{"a report that names keys that cannot be", func(f *fleet) {
			for _, l := range f.memberLeases() {
				edit(f, l.Name, memberAnnotation, fmt.Sprintf(
					`{"v":1,"t":%d,"o":"../x","r":[[-1,5]],"w":1}`, l.Spec.AcquireTime.UnixMicro()))
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				a := f.spread("a", Keys(numbered(4)...))
				b := f.spread("b", Keys(numbered(4)...))
				f.sleep(time.Minute)
				f.wantShape("a b[2 2]")
				c.do(f)
				f.sleep(3 * D)
				f.wantShape("a b[2 2]")
				lost := f.logged("lease lost")
				f.sleep(2 * D)
				f.wantShape("a b[2 2]")
				if f.logged("lease lost") != lost {
					f.Error("the members lose their leases again and again")
				}
				a.quit()
				b.quit()
			})
		})
	}
}

// Members with another number of buckets wait for the others to go, and keep nobody from going on.
func TestRingOtherBuckets(t *testing.T) {
	inFleet(t, func(f *fleet) {
		old := f.join("old", 4)
		f.sleep(2 * time.Second)
		fresh := f.join("fresh", 8)
		f.sleep(D)
		f.wantShape("old[4]")
		if f.logged("this member does not join") != 1 {
			f.Error("no line, or several, about the other number of buckets")
		}
		f.srv.Delete(ns, name) // either begins the new table
		f.sleep(3 * D)
		if shape := f.shape(); shape != "old[4]" && shape != "fresh[8]" {
			f.Errorf("members have %q", shape)
		}
		old.quit()
		f.sleep(3 * D)
		f.wantShape("fresh[8]")
		fresh.quit()
	})
}

// ofAnotherFormat returns the compressed text of another version's table; a report has the prefix "zlib:".
func ofAnotherFormat() string {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	fmt.Fprint(w, `{"v":99}`)
	w.Close()
	return base64.RawStdEncoding.EncodeToString(b.Bytes())
}

// A table of another format is left to the members that wrote it until they are gone.
func TestGroupOfAnotherFormat(t *testing.T) {
	for _, c := range []struct {
		name    string
		report  string // of the member of another version
		crashes bool
	}{
		{"leaves", "zlib:" + ofAnotherFormat(), false},
		{"crashes", "zlib:" + ofAnotherFormat(), true},
		{"has not reported yet", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				other := name + "-m-0123456789ab"
				left := false
				put := func() {
					l := &coordinationv1.Lease{
						ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: other,
							Labels:      map[string]string{groupLabel: name},
							Annotations: map[string]string{memberAnnotation: c.report}},
						Spec: coordinationv1.LeaseSpec{
							HolderIdentity: new("other"), LeaseDurationSeconds: new(int32(D / time.Second)),
							AcquireTime: &metav1.MicroTime{Time: time.UnixMicro(5)},
							RenewTime:   new(metav1.NowMicro()),
						},
					}
					if left {
						l.Spec = coordinationv1.LeaseSpec{}
					}
					f.srv.Put(l)
				}
				f.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name,
					Labels:      map[string]string{groupLabel: name},
					Annotations: map[string]string{tableAnnotation: ofAnotherFormat()}}})
				put()
				a := f.spread("a", Keys(numbered(4)...))
				b := f.spread("b", Keys(numbered(4)...))
				for range 10 {
					f.sleep(I)
					put()
				}
				if f.lease().Annotations[tableAnnotation] != ofAnotherFormat() {
					f.Error("the table was overwritten")
				}
				if n := f.logged("another version of the program shares out the keys"); n != 2 {
					f.Errorf("%d lines about the other version, want one for each member", n)
				}
				if left = !c.crashes; left {
					put()
				}
				f.sleep(2*D + I)
				f.wantShape("a b[2 2]")
				a.quit()
				b.quit()
			})
		})
	}
}

// A table of another format is replaced if no member of that format is live.
func TestGroupFormatByHand(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys(numbered(4)...))
		f.sleep(time.Second)
		b := f.spread("b", Keys(numbered(4)...))
		f.sleep(3 * I)
		f.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Annotations[tableAnnotation] = ofAnotherFormat() })
		f.sleep(D + I)
		f.wantShape("a b[2 2]")
		if n := f.logged("the group's table cannot be read; beginning a new one"); n != 1 {
			f.Errorf("%d lines about the new table, want 1", n)
		}
		a.quit()
		b.quit()
	})
}
