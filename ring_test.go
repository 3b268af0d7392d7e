package leasehold

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientrecord "k8s.io/client-go/tools/record"

	"github.com/leasehold-go/leasehold/internal/shards"
	"github.com/leasehold-go/leasehold/leasetest"
)

// A ringer is a member of a ring whose changes are followed.
type ringer struct {
	*Ring
	stop context.CancelFunc
	done chan struct{} // closed when the changes ended
}

// join starts a member of a ring, and checks what its changes say.
func (f *fleet) join(member string, buckets int, opts ...Option) *ringer {
	ctx, cancel := context.WithCancel(f.Context())
	r, err := Join(ctx, buckets, f.options(member, opts...)...)
	if err != nil {
		f.Fatal(err)
	}
	x := &ringer{Ring: r, stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(x.done)
		has := map[int]bool{}
		for c := range r.Changes() {
			if c.Gained == has[c.Bucket] {
				f.Errorf("%s: bucket %d gained %v twice", member, c.Bucket, c.Gained)
			}
			has[c.Bucket] = c.Gained
			if c.Gained {
				f.enterKey(c.Session, strconv.Itoa(c.Bucket), member)
			} else if c.Session.Err() == nil {
				f.Errorf("%s: bucket %d was given up, and its session is live", member, c.Bucket)
			}
		}
		for bucket, owned := range has {
			if owned {
				f.Errorf("%s: the ring has left, and bucket %d was not given up", member, bucket)
			}
		}
	}()
	synctest.Wait()
	return x
}

func (x *ringer) quit() error {
	x.stop()
	err := x.Wait()
	<-x.done
	return err
}

// keyOf returns a key of a bucket.
func keyOf(bucket, buckets int) string {
	for i := 0; ; i++ {
		if key := fmt.Sprint("object-", i); shards.BucketOf(key, buckets) == bucket {
			return key
		}
	}
}

func TestRing(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.join("a", 8)
		f.sleep(2 * time.Second)
		f.wantShape("a[8]")
		const all = "shardRange(object.metadata.uid, '0x0000000000000000', '0x10000000000000000')"
		if got := a.Selector("object.metadata.uid"); got != all {
			f.Errorf("selector %s, want %s", got, all)
		}
		b := f.join("b", 8)
		f.sleep(I + time.Second)
		f.wantShape("a b[4 4]")
		for bucket := range 8 {
			key := keyOf(bucket, 8)
			_, leaveA, atA := a.Enter(key)
			_, leaveB, atB := b.Enter(key)
			leaveA()
			leaveB()
			if atA == atB || atA != a.Owns(key) || atB != b.Owns(key) {
				f.Errorf("bucket %d: entered at a: %v, at b: %v; owned by a: %v, by b: %v",
					bucket, atA, atB, a.Owns(key), b.Owns(key))
			}
		}
		if err := a.quit(); err != context.Canceled {
			f.Errorf("error %v", err)
		}
		f.sleep(time.Second)
		f.wantShape("b[8]")
		b.quit()
	})
}

// A bucket is given on only when everybody has left it, and nobody enters it meanwhile.
func TestRingDrains(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.join("a", 2)
		f.sleep(2 * time.Second)
		var leaves []func()
		for bucket := range 2 {
			for range 2 {
				s, leave, ok := a.Enter(keyOf(bucket, 2))
				if !ok || s.Err() != nil || s.FencingToken() == 0 {
					f.Fatalf("bucket %d: entered %v, %v", bucket, ok, s.Err())
				}
				if err := s.Release(); err == nil || s.Err() != nil {
					f.Errorf("Release of a ring's session: %v, and then %v", err, s.Err())
				}
				if err := s.HandOver("b"); err == nil || s.Err() != nil {
					f.Errorf("HandOver of a ring's session: %v, and then %v", err, s.Err())
				}
				leaves = append(leaves, leave)
			}
		}
		b := f.join("b", 2)
		f.sleep(2 * D)
		f.wantShape("a[1]")
		for bucket := range 2 {
			if _, leave, ok := a.Enter(keyOf(bucket, 2)); ok == b.Owns(keyOf(bucket, 2)) && ok {
				leave()
				f.Errorf("bucket %d was entered twice", bucket)
			} else {
				leave()
			}
		}
		leaves[0]()
		leaves[0]() // again does nothing
		leaves[2]()
		f.sleep(time.Second)
		f.wantShape("a[1]")
		leaves[1]()
		leaves[3]()
		f.sleep(time.Second)
		f.wantShape("a b[1 1]")
		a.quit()
		b.quit()
	})
}

// Enter succeeds before a gain is yielded, and fails before a loss is.
func TestRingEntersByChanges(t *testing.T) {
	inFleet(t, func(f *fleet) {
		const buckets = 8
		var loops sync.WaitGroup
		var gains, losses atomic.Int64
		join := func(member string) *ringer {
			x := f.join(member, buckets)
			loops.Go(func() {
				for c := range x.Changes() {
					s, leave, ok := x.Enter(keyOf(c.Bucket, buckets))
					leave()
					if c.Gained {
						gains.Add(1)
					} else {
						losses.Add(1)
					}
					switch {
					case c.Gained && !ok && c.Session.Err() == nil:
						f.Errorf("%s gained bucket %d, and may not enter it", member, c.Bucket)
					case !c.Gained && ok && s == c.Session:
						f.Errorf("%s gave up bucket %d, and may enter it", member, c.Bucket)
					}
				}
			})
			f.sleep(2 * I)
			return x
		}
		a := join("a")
		b := join("b")
		f.wantShape("a b[4 4]")
		b.quit()
		f.sleep(time.Second)
		a.quit()
		loops.Wait()
		if gains.Load() != 16 || losses.Load() != 16 { // a has all, half, and all again
			f.Errorf("%d gains and %d losses, want 16 of each", gains.Load(), losses.Load())
		}
	})
}

// Shares yields what the members see.
func TestShares(t *testing.T) {
	inFleet(t, func(f *fleet) {
		ctx, cancel := context.WithCancel(f.Context())
		var shares []Share
		var at []time.Time
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			for s := range Shares(ctx, f.options("watcher", WithError(&err))...) {
				shares, at = append(shares, s), append(at, time.Now())
			}
		}()
		f.sleep(time.Second)
		if len(shares) != 1 || shares[0].Owners != nil {
			f.Fatalf("shares before there is a group: %+v", shares)
		}
		a := f.spreadWork("a", Keys("x", "y", "z"), func(s Session, key string) error {
			<-s.Done()
			time.Sleep(1500 * time.Millisecond)
			return nil
		}, WithWeight(2))
		f.sleep(3 * time.Second)
		b := f.spread("b", Keys("x", "y", "z"))
		f.sleep(I + 4*time.Second)
		moved := slices.IndexFunc(shares, func(s Share) bool { return len(s.Moving) > 0 })
		if moved < 0 || len(shares[moved].Moving) != 1 || shares[moved].Owners[shares[moved].Moving[0]] != "a" {
			f.Errorf("no share shows the one key that moves: %+v", shares)
		}
		last := shares[len(shares)-1]
		owned := map[string]int{}
		for key, who := range last.Owners {
			owned[who]++
			if !strings.Contains("x y z", key) {
				f.Errorf("key %q", key)
			}
		}
		if owned["a"] != 2 || owned["b"] != 1 || len(last.Unowned)+len(last.Moving) != 0 {
			f.Errorf("shares %+v", last)
		}
		if m := last.Members; len(m) != 2 || m[0].Identity != "a" || m[0].Weight != 2 || m[0].Keys != 2 ||
			m[1].Keys != 1 ||
			m[0].Since.IsZero() {
			f.Errorf("members %+v", m)
		}
		a.quit()
		b.quit()
		f.sleep(2 * time.Second)
		for i := range at[1:] {
			if at[i+1].Sub(at[i]) < time.Second {
				f.Errorf("two shares within %v", at[i+1].Sub(at[i]))
			}
		}
		cancel()
		<-done
		if err != context.Canceled {
			f.Errorf("error %v", err)
		}
	})
}

// Shares reads what members accept as the group's table: one without the label too, until they write it again.
func TestSharesOfTableWithoutLabel(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys("x", "y"))
		f.sleep(2 * time.Second)
		f.srv.Edit(ns, name, func(l *coordinationv1.Lease) { delete(l.Labels, groupLabel) })
		b := f.spread("b", Keys("x", "y"), WithSettle(time.Hour))
		ctx, cancel := context.WithCancel(f.Context())
		var first Share
		for s := range Shares(ctx, f.options("watcher")...) {
			first = s
			break
		}
		if len(first.Owners) != 2 {
			f.Errorf("shares %+v", first)
		}
		cancel()
		a.quit()
		b.quit()
	})
}

// A loop over Shares is left at once, although the names of the keys cannot be read.
func TestSharesLeft(t *testing.T) {
	inFleet(t, func(f *fleet) {
		f.srv.Client("watcher").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if strings.Contains(r.Name, "-k-") {
				return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
			}
			return leasetest.Fault{}
		})
		leave, left := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(left)
			for range Shares(f.Context(), f.options("watcher")...) {
				<-leave
				break
			}
		}()
		a := f.spread("a", Keys("x"))
		f.sleep(2 * time.Second)
		close(leave)
		f.sleep(2 * time.Second)
		select {
		case <-left:
		default:
			f.Error("the loop goes on")
		}
		f.srv.Client("watcher").OnRequest(nil)
		a.quit()
	})
}

func TestGroupOptions(t *testing.T) {
	inFleet(t, func(f *fleet) {
		work := func(Session, string) error { return nil }
		refuse := func(opts ...Option) error { return Spread(f.Context(), Keys("x"), work, f.options("a", opts...)...) }
		for _, c := range []struct {
			want string
			err  error
		}{
			{"WithWeight: want 1 to 1000, not 0", refuse(WithWeight(0))},
			{"WithMoves: want at least 1, not 0", refuse(WithMoves(0))},
			{"WithSettle: want at least 0, not -1s", refuse(WithSettle(-time.Second))},
			{"WithReclaim: it is for leases, not for groups", refuse(WithReclaim())},
			{"WithCreateMode: it is for leases", refuse(WithCreateMode(CreateNew))},
			{"WithDeleteOnRelease: it is for leases", refuse(WithDeleteOnRelease())},
			{"WithOverrun: it is for leases", refuse(WithOverrun(func(Session) {}))},
			{"WithSlots: it is for leases", refuse(WithSlots(2))},
			{"WithPriority: it is for leases", refuse(WithPriority(2))},
			{"WithYield: it is for leases", refuse(WithYield())},
			{"WithAdvertise: it is for leases", refuse(WithAdvertise("10.0.0.7:8080"))},
			{"WithBeat: it is for leases", refuse(WithBeat(time.Second))},
			{"the work is nil", Spread[string](f.Context(), Keys("x"), nil, f.options("a")...)},
			{"the channel of keys is nil", Spread(f.Context(), nil, work, f.options("a")...)},
			{"an empty key", Spread(f.Context(), Keys("x", ""), work, f.options("a")...)},
			{`key "x" is there twice`, Spread(f.Context(), Keys("x", "x"), work, f.options("a")...)},
			{"has 300 bytes, want at most 256",
				Spread(f.Context(), Keys(strings.Repeat("x", 300)), work, f.options("a")...)},
			{"want valid UTF-8", Spread(f.Context(), Keys("\xff"), work, f.options("a")...)},
			{"the channel of keys ended before there was a set",
				Spread(f.Context(), closed(), work, f.options("a")...)},
			{"must be no more than 63 bytes", refuse(WithLease(strings.Repeat("x", 64)))},
			{"Join: want 1 to 65536 buckets, not 0", second(Join(f.Context(), 0, f.options("a")...))},
			{"Join: want 1 to 65536 buckets, not 65537", second(Join(f.Context(), 65537, f.options("a")...))},
			{"WithWeight: it is for Spread and Join", second(Acquire(f.Context(), f.options("a", WithWeight(2))...))},
		} {
			if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
				f.Errorf("error %v, want %q", c.err, c.want)
			}
		}
	})
}

// What options for leases do in a group: its Leases have the labels and the field manager, but the owner, with which
// Kubernetes deletes what it owns, and the events are the member's own.
func TestGroupOptionsOfLeases(t *testing.T) {
	for _, c := range []struct {
		name  string
		pages []string // of keys
		begin func(f *fleet, opts ...Option) (quit func() error)
	}{
		{"Spread", []string{name + "-k-" + shards.Digest(numbered(4)) + "-0"},
			func(f *fleet, opts ...Option) func() error {
				a := f.spread("a", Keys(numbered(4)...), opts...)
				return func() error {
					a.quit()
					return a.err
				}
			}},
		{"Join", nil, func(f *fleet, opts ...Option) func() error { return f.join("a", 4, opts...).quit }},
	} {
		t.Run(c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				owner := metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: "p", UID: "u"}
				recorder := &rememberer{FakeRecorder: clientrecord.NewFakeRecorder(10)}
				var err error
				quit := c.begin(f, WithLabels(map[string]string{"team": "storage", groupLabel: "x"}), WithOwner(owner),
					WithEventRecorder(recorder), WithFieldManager("feeds"), WithError(&err))
				f.sleep(2 * I)
				own := f.leaseOf("a")
				var names []string
				list, listErr := f.srv.Client("operator").Leases(ns).List(f.Context(), metav1.ListOptions{})
				if listErr != nil {
					f.Fatal(listErr)
				}
				for _, l := range list.Items {
					names = append(names, l.Name)
					if l.Labels["team"] != "storage" || l.Labels[groupLabel] != name {
						f.Errorf("%s has the labels %v", l.Name, l.Labels)
					}
					if slices.Contains(l.OwnerReferences, owner) != (l.Name == own) {
						f.Errorf("%s has the owners %v", l.Name, l.OwnerReferences)
					}
					for _, m := range l.ManagedFields {
						if m.Manager != "feeds" {
							f.Errorf("%s was written by %q", l.Name, m.Manager)
						}
					}
					if len(l.ManagedFields) == 0 {
						f.Errorf("nobody is known to have written %s", l.Name)
					}
				}
				slices.Sort(names)
				if want := slices.Concat([]string{name}, c.pages, []string{own}); !slices.Equal(names, want) {
					f.Errorf("Leases %v, want %v: the table, the pages of keys, and the member's", names, want)
				}
				if returned := quit(); returned != context.Canceled || err != returned {
					f.Errorf("error %v, by WithError %v", returned, err)
				}
				f.sleep(time.Second)
				close(recorder.Events)
				var events []string
				for e := range recorder.Events {
					events = append(events, e)
				}
				want := []string{"Normal LeaderElection a became leader", "Normal LeaderElection a stopped leading"}
				if !slices.Equal(events, want) {
					f.Errorf("events %q, want %q", events, want)
				}
				for _, object := range recorder.forget() {
					if got := object.(*coordinationv1.Lease).Name; got != own {
						f.Errorf("an event about %s, want %s", got, own)
					}
				}
			})
		})
	}
}

func closed() <-chan []string {
	c := make(chan []string)
	close(c)
	return c
}

func second[T any](_ T, err error) error { return err }

// A Lease that is not a group's is never written.
func TestGroupOfAnothersName(t *testing.T) {
	inFleet(t, func(f *fleet) {
		holder := f.run("holder", nil)
		f.sleep(time.Second)
		before := f.lease()
		err := Spread(f.Context(), Keys("x"), func(Session, string) error { return nil }, f.options("a")...)
		if !errors.Is(err, errForeignTable) || !strings.Contains(err.Error(), ns+"/"+name) {
			f.Errorf("error %v", err)
		}
		if f.lease().Annotations[tableAnnotation] != "" || before.UID != f.lease().UID {
			f.Error("the Lease was written")
		}
		holder.quit()
	})
}
