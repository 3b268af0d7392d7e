package leasehold

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold/internal/annotation"
	"github.com/leasehold-go/leasehold/internal/shards"
	"github.com/leasehold-go/leasehold/leasetest"
)

// editMember edits the Lease of a member.
func (f *fleet) editMember(member string, edit func(l *coordinationv1.Lease)) {
	for _, l := range f.memberLeases() {
		if l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity == member {
			f.srv.Edit(ns, l.Name, edit)
			return
		}
	}
	f.Fatalf("no Lease of %s", member)
}

// requests returns how many requests members have made.
func (f *fleet) requests(members ...string) (n int) {
	for _, member := range members {
		n += f.srv.Client(member).Requests()
	}
	return n
}

// A member whose Lease somebody asks to be handed over goes on: the request is for a lease that others wait for.
func TestGroupAskedToHandOver(t *testing.T) {
	asks := []struct {
		name string
		ask  func(l *coordinationv1.Lease)
	}{
		{"handover", func(l *coordinationv1.Lease) {
			l.Annotations[annotation.HandOver] = annotation.FormatHandOver(l.Spec.AcquireTime.Time, "")
		}},
		{"preferred holder", func(l *coordinationv1.Lease) {
			l.Spec.Strategy, l.Spec.PreferredHolder = new(coordinationv1.OldestEmulationVersion), new("b")
		}},
	}
	for _, c := range asks {
		t.Run("Spread, "+c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				a := f.spread("a", Keys(numbered(4)...))
				f.sleep(time.Second)
				b := f.spread("b", Keys(numbered(4)...))
				f.sleep(2 * I)
				f.editMember("a", c.ask)
				f.sleep(I)
				f.wantShape("a b[2 2]")
				before := f.requests("a", "b")
				f.sleep(time.Minute)
				f.wantShape("a b[2 2]")
				if sent := f.requests("a", "b") - before; sent > int(2*time.Minute/(I*9/10)) {
					f.Errorf("%d requests in a minute, want the renewals of 2 members", sent)
				}
				a.quit()
				b.quit()
			})
		})
		t.Run("Join, "+c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				a := f.join("a", 4)
				f.sleep(time.Second)
				b := f.join("b", 4)
				f.sleep(2 * I)
				f.editMember("a", c.ask)
				f.sleep(time.Minute)
				f.wantShape("a b[2 2]")
				b.quit()
				f.sleep(I)
				f.wantShape("a[4]")
				a.quit()
			})
		})
	}
}

// A fence leaves "" for the holder where coordinated leader election may read it.
func TestGroupFenceOfPreferredHolder(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a, b := f.spreadTwo()
		lease := f.leaseOf("b")
		f.srv.Client("b").Partition(true)
		f.srv.Edit(ns, lease, func(l *coordinationv1.Lease) {
			l.Spec.Strategy, l.Spec.PreferredHolder = new(coordinationv1.OldestEmulationVersion), new("x")
		})
		f.sleep(D + 2*I)
		f.wantShape("a[4]")
		if holder := f.srv.Lease(ns, lease).Spec.HolderIdentity; holder == nil || *holder != "" {
			f.Errorf("the Lease has the holder %v, want an empty one", holder)
		}
		f.srv.Client("b").Partition(false)
		a.quit()
		b.quit()
	})
}

// leaseOf returns the name of the Lease of a member.
func (f *fleet) leaseOf(member string) string {
	for _, l := range f.memberLeases() {
		if l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity == member {
			return l.Name
		}
	}
	f.Fatalf("no Lease of %s", member)
	return ""
}

// wedge keeps a member from all writes but the renewals of its own Lease.
func (f *fleet) wedge(member string) {
	own := f.leaseOf(member)
	f.srv.Client(member).OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
		if r.Verb != "get" && r.Verb != "list" && r.Verb != "watch" && r.Name != own {
			fault.Err = leasetest.ServiceUnavailable()
		}
		return fault
	})
}

// tableWrites counts the writes of the table from now on.
func (f *fleet) tableWrites() func() int {
	var mu sync.Mutex
	n := 0
	f.srv.OnCommit(func(c leasetest.Change) {
		mu.Lock()
		defer mu.Unlock()
		if c.New.Name == name {
			n++
		}
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

// spreadTwo runs members a and b, which share 4 keys.
func (f *fleet) spreadTwo() (a, b *runner) {
	a = f.spread("a", Keys(numbered(4)...))
	f.sleep(3 * time.Second)
	b = f.spread("b", Keys(numbered(4)...))
	f.sleep(3 * I)
	f.wantShape("a b[2 2]")
	return a, b
}

// spreadThree runs members a, b and c, which share 12 keys. When it returns, a assigns, and b is the next in line.
func (f *fleet) spreadThree() (runners []*runner) {
	for _, member := range []string{"a", "b", "c"} {
		runners = append(runners, f.spread(member, Keys(numbered(12)...)))
		f.sleep(time.Second)
	}
	f.sleep(2 * I)
	f.wantShape("a b c[4 4 4]")
	t, err := shards.DecodeTable(f.lease().Annotations[tableAnnotation])
	if err != nil || t.Assigner.Lease != f.leaseOf("a") {
		f.Fatalf("a does not assign: %+v, %v", t, err)
	}
	return runners
}

// A member that assigns, and renews its Lease but does nothing else, is replaced by the next in line, which watches
// all, also where nobody misses anything but the keys.
func TestGroupWedgedAssigner(t *testing.T) {
	for _, c := range []struct {
		name  string
		do    func(f *fleet, c *runner)
		limit time.Duration
		want  string
	}{
		{"a member crashes", func(f *fleet, c *runner) {
			f.srv.Client("c").Partition(true)
		}, 2*D + I + 2*time.Second, "a b[6 6]"},
		{"a member leaves", func(f *fleet, c *runner) { c.quit() }, D + I + 2*time.Second, "a b[6 6]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				runners := f.spreadThree()
				f.wedge("a")
				f.sleep(I)
				c.do(f, runners[2])
				f.sleep(c.limit)
				f.wantShape(c.want)
				if n := f.logged("does not answer; taking over"); n != 1 {
					f.Errorf("%d lines about the takeover, want 1", n)
				}
				writes := f.tableWrites()
				f.sleep(4 * D)
				if n := writes(); n > 1 {
					f.Errorf("%d writes of the table although nothing happens", n)
				}
				f.srv.Client("c").Partition(false)
				for _, r := range runners {
					r.quit()
				}
			})
		})
	}
}

// A member whose request goes unanswered takes over, also where it is far from being the next in line, which is
// wedged too.
func TestGroupWedgedAssignerAndNext(t *testing.T) {
	inFleet(t, func(f *fleet) {
		runners := f.spreadThree()
		f.wedge("a")
		f.wedge("b")
		d := f.spread("d", Keys(numbered(12)...))
		f.sleep(D + 2*I)
		f.wantShape("a b c d[3 3 3 3]")
		if n := f.logged("does not answer; taking over"); n != 1 {
			f.Errorf("%d lines about the takeover, want 1", n)
		}
		for _, r := range append(runners, d) {
			r.quit()
		}
	})
}

// Leases of no use that cannot be deleted keep the assigner from nothing else for longer than one request.
func TestGroupUnusedLeasesNotDeleted(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault func(r leasetest.Request) leasetest.Fault
	}{
		{"no answer", func(leasetest.Request) leasetest.Fault { return leasetest.Fault{Drop: leasetest.TheRequest} }},
		{"slow refusal", func(r leasetest.Request) leasetest.Fault {
			return leasetest.Fault{Before: R / 4, Err: leasetest.Forbidden(r)}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				f.srv.Client("a").OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
					if r.Verb == "delete" {
						fault = c.fault(r)
					}
					return fault
				})
				a := f.spread("a", Keys(numbered(4)...))
				for i := range 20 {
					f.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
						Namespace: ns, Name: fmt.Sprintf("%s-m-%012d", name, i),
						Labels: map[string]string{groupLabel: name},
					}})
				}
				f.sleep(2*D + I)
				b := f.spread("b", Keys(numbered(4)...))
				f.sleep(R/3 + 2*I)
				f.wantShape("a b[2 2]")
				f.srv.Client("a").OnRequest(nil)
				f.sleep(2 * D)
				if n := len(f.memberLeases()); n != 2 {
					f.Errorf("%d Leases of members, want 2", n)
				}
				a.quit()
				b.quit()
			})
		})
	}
}

// A key that rests because its work fails is no reason to take over.
func TestGroupRestingKeyIsAnswered(t *testing.T) {
	inFleet(t, func(f *fleet) {
		var runners []*runner
		for _, member := range []string{"a", "b", "c"} {
			runners = append(runners, f.spreadWork(member, Keys(numbered(12)...), func(s Session, key string) error {
				if key == "key-0003" {
					return errors.New("poisoned")
				}
				<-s.Done()
				return nil
			}))
			f.sleep(time.Second)
		}
		f.sleep(time.Hour)
		if n := f.logged("taking over"); n != 0 {
			f.Errorf("%d takeovers", n)
		}
		if n := f.begun("key-0003"); n > 40 {
			f.Errorf("the poisoned key began %d times in an hour", n)
		}
		for _, r := range runners {
			r.quit()
		}
	})
}

// A Lease that nobody can write, of a member that has crashed, keeps its own keys alone from being given out; so does a
// page of keys that cannot be read.
func TestGroupBadLease(t *testing.T) {
	for _, c := range []struct {
		name string
		bad  func(r leasetest.Request, lease string) bool
		most int // requests in a minute
	}{
		{"of a member", func(r leasetest.Request, lease string) bool {
			return r.Verb == "patch" && r.Name == lease
		}, 120},
		{"with keys", func(r leasetest.Request, lease string) bool {
			return r.Verb == "get" && r.Name == name+"-k-"+shards.Digest(numbered(5))+"-0"
		}, 120},
	} {
		t.Run(c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				runners := f.spreadThree()
				lease := f.leaseOf("c")
				for _, member := range []string{"a", "b", "d", "e"} {
					f.srv.Client(member).OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
						if c.bad(r, lease) {
							fault.Err = leasetest.Forbidden(r)
						}
						return fault
					})
				}
				f.srv.Client("c").Partition(true)
				runners = append(runners, f.spread("e", Keys(numbered(5)...)))
				f.sleep(2 * D)
				runners = append(runners, f.spread("d", Keys(numbered(12)...)))
				f.sleep(2 * I)
				runners[1].quit()
				f.sleep(2 * time.Second)
				before := f.requests("a", "d", "e")
				f.sleep(time.Minute)
				if n := f.requests("a", "d", "e") - before; n > c.most {
					f.Errorf("%d requests in a minute, want at most %d", n, c.most)
				}
				if f.owned() < 8 {
					f.Errorf("owners %v, want all but those of the member that crashed", f.owners())
				}
				for _, r := range runners {
					r.quit()
				}
			})
		})
	}
}

// Work that does not return ends its member's term, and not the group, also where the table that replaced its own is of
// another number of buckets.
func TestGroupOtherBucketsStuckWork(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.join("a", 2)
		f.sleep(time.Second)
		b := f.join("b", 4)
		f.sleep(2 * I)
		_, leave, ok := a.Enter(keyOf(0, 2))
		if !ok {
			f.Fatal("not entered")
		}
		f.srv.Client("a").OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
			if r.Verb == "create" && r.Name == name {
				fault.Err = leasetest.ServiceUnavailable()
			}
			return fault
		})
		f.srv.Delete(ns, name)
		f.sleep(time.Second)
		before := f.requests("a")
		f.sleep(D - 2*time.Second)
		if sent := f.requests("a") - before; sent > 10 {
			f.Errorf("%d requests while the work does not return, want the renewals", sent)
		}
		f.sleep(D + 4*time.Second)
		f.wantShape("b[4]")
		leave()
		f.sleep(D)
		f.wantShape("b[4]")
		a.quit()
		b.quit()
	})
}

// A table of an epoch that all have left is put back, and its assigner's term is over: any member begins a new one.
func TestGroupEarlierEpochRestored(t *testing.T) {
	for _, members := range [][]string{{"a"}, {"a", "b", "c"}} {
		inFleet(t, func(f *fleet) {
			var runners []*runner
			for _, member := range members {
				runners = append(runners, f.spread(member, Keys(numbered(6)...)))
				f.sleep(time.Second)
			}
			f.sleep(2 * I)
			first := f.lease()
			f.srv.Delete(ns, name)
			f.sleep(2*D + I)
			if n := f.owned(); n != 6 {
				f.Errorf("%d keys are owned, want 6", n)
			}
			for _, member := range members {
				f.srv.Client(member).Partition(true)
			}
			f.sleep(D)
			f.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Annotations = first.Annotations })
			for _, member := range members {
				f.srv.Client(member).Partition(false)
			}
			f.sleep(3 * D)
			if n := f.owned(); n != 6 {
				f.Errorf("%d members: %d keys are owned, want 6", len(members), n)
			}
			for _, r := range runners {
				r.quit()
			}
		})
	}
}

// A member that assigns nothing forgets the sets of keys that are of no use any more.
func TestGroupForgetsSets(t *testing.T) {
	inFleet(t, func(f *fleet) {
		sets := make(chan []string, 1)
		sets <- numbered(4)
		a := f.spread("a", sets)
		f.sleep(time.Second)
		b := f.spread("b", Keys(numbered(4)...))
		f.sleep(time.Second)
		var monitor Monitor
		c := f.spread("c", Keys(numbered(4)...), WithMonitor(&monitor))
		f.sleep(2 * I)
		for n := range maxSets + 10 {
			sets <- numbered(5 + n)
			f.sleep(I / 2)
		}
		f.sleep(I)
		g := monitor.allGroups()[0]
		g.mu.Lock()
		n := len(g.sets.byDigest)
		_, known := g.sets.byDigest[shards.Digest(numbered(4))]
		g.mu.Unlock()
		if n > maxSets || !known {
			f.Errorf("%d sets are remembered, want at most %d; its own among them: %v", n, maxSets, known)
		}
		for _, r := range []*runner{a, b, c} {
			r.quit()
		}
	})
}

// A set of keys that somebody deletes is published again by the member that knows it, once an assigner misses it.
func TestGroupKeysDeleted(t *testing.T) {
	for _, keys := range [][]string{{"c1", "c2"}, numbered(4)} {
		inFleet(t, func(f *fleet) {
			var monitor Monitor
			a := f.spread("a", Keys(numbered(6)...))
			f.sleep(time.Second)
			b := f.spread("b", Keys(numbered(6)...), WithMonitor(&monitor))
			f.sleep(time.Second)
			c := f.spread("c", Keys(keys...))
			f.sleep(3 * I)
			all := f.owned()
			digest := shards.Digest(keys)
			f.srv.Delete(ns, name+"-k-"+digest+"-0")
			for _, g := range monitor.allGroups() { // as if b had begun just now
				g.mu.Lock()
				delete(g.sets.byDigest, digest)
				g.mu.Unlock()
			}
			f.srv.Client("a").Partition(true)
			f.sleep(2*D + I)
			if owners := f.owners(); f.owned() != all || len(owners["c"]) == 0 {
				f.Errorf("owners %v, want b and c of %d keys", owners, all)
			}
			before := f.requests("b", "c")
			f.sleep(time.Minute)
			if sent := f.requests("b", "c") - before; sent > int(2*time.Minute/(I*9/10))+4 {
				f.Errorf("%d requests in a minute, want the renewals of 2 members", sent)
			}
			f.srv.Client("a").Partition(false)
			for _, r := range []*runner{a, b, c} {
				r.quit()
			}
		})
	}
}

// While the API server asks a member to wait, it renews no sooner because it has something to tell.
func TestGroupRetryAfter(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys(numbered(4)...))
		f.sleep(I)
		own := f.leaseOf("a")
		var renewals atomic.Int64
		f.srv.Client("a").OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
			if r.Verb == "patch" && r.Name == own {
				renewals.Add(1)
				fault.Err = leasetest.TooManyRequests(2 * time.Second)
			}
			return fault
		})
		s := f.sessionsOf("a")[0]
		for s.ValidFor() > R/2 {
			f.sleep(100 * time.Millisecond)
		}
		before := renewals.Load()
		f.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Labels["edited"] = "true" })
		// The news has to wait: there is too little trust to begin sessions, but enough for a pause of 2 s.
		f.sleep(time.Second)
		if n := renewals.Load() - before; n > 1 {
			f.Errorf("%d renewals in a second although each was to wait for 2 s", n)
		}
		a.quit()
	})
}

// Where another program's Lease takes the place of the table, the keys stay with who has them, and that is logged.
func TestGroupForeignLeaseLater(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys(numbered(4)...))
		f.sleep(I)
		f.wantShape("a[4]")
		f.srv.Client("a").OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
			if r.Verb == "create" {
				fault.Before = time.Second
			}
			return fault
		})
		f.srv.Delete(ns, name)
		f.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: new("another program")}})
		f.sleep(2 * D)
		f.wantShape("a[4]")
		if n := f.logged("the group's Lease is another program's now"); n != 1 {
			f.Errorf("%d lines about the foreign Lease, want 1", n)
		}
		f.srv.Delete(ns, name)
		f.sleep(2*D + I)
		f.wantShape("a[4]")
		a.quit()
	})
}

// If the members together know more keys than a table may have, each keeps its own.
func TestGroupTooManyKeys(t *testing.T) {
	defer func(most int) { maxKeys = most }(maxKeys)
	maxKeys = 4
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys("x0", "x1", "x2", "x3"))
		f.sleep(I)
		b := f.spread("b", Keys("y"))
		f.sleep(3 * D)
		f.wantShape("a[4]")
		if n := f.logged("the members know 5 keys together, want at most 4"); n != 2 {
			f.Errorf("%d lines about the keys, want one of each member", n)
		}
		c := f.spread("c", Keys("z"))
		f.sleep(3 * D)
		f.wantShape("a[4]")
		if n := f.logged("this member cannot assign the group's keys"); n != 3 {
			f.Errorf("%d lines about the keys, want one of each member", n)
		}
		b.quit()
		c.quit()
		f.wantShape("a[4]")
		a.quit()
	})
}

// A table that is too large to be written costs no requests about its keys.
func TestGroupTableTooLarge(t *testing.T) {
	inFleet(t, func(f *fleet) {
		keys := make([]string, 4)
		for i := range keys {
			keys[i] = fmt.Sprint("x", i)
		}
		a := f.spread("a", Keys(keys...))
		f.sleep(I)
		defer func(most int) { maxAnnotation = most }(maxAnnotation)
		maxAnnotation = 100
		b := f.spread("b", Keys("y"))
		f.sleep(I)
		before := f.requests("a", "b")
		f.sleep(time.Minute)
		if sent := f.requests("a", "b") - before; sent > int(2*time.Minute/(I*9/10))+4 {
			f.Errorf("%d requests in a minute, want the renewals of 2 members", sent)
		}
		a.quit()
		b.quit()
	})
}

// A member that may not watch the table keeps its term if it reads slowly, though a newer table is reported before each
// read is done. If its reads fail, its term ends.
func TestGroupSlowReader(t *testing.T) {
	for _, c := range []struct {
		name  string
		read  leasetest.Fault // of the table
		stays bool
	}{
		{"slow reads", leasetest.Fault{After: I * 5 / 6}, true},
		{"reads slower than a renew interval", leasetest.Fault{After: I * 7 / 6}, true},
		{"failing reads", leasetest.Fault{Err: leasetest.ServiceUnavailable()}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				a := f.spread("a", Keys(numbered(4)...))
				f.sleep(time.Second)
				b := f.spread("b", Keys(numbered(4)...))
				f.sleep(3 * I)
				f.wantShape("a b[2 2]")
				f.srv.Client("b").OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
					switch {
					case r.Name != name:
					case r.Verb == "get":
						fault = c.read
					case r.Verb == "watch":
						fault.Err = leasetest.Forbidden(r)
					}
					return fault
				})
				f.srv.Client("b").CloseWatches(nil)
				for n := range int(3 * D / time.Second) {
					f.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Labels["edited"] = fmt.Sprint(n) })
					f.sleep(time.Second)
				}
				if lost := f.logged("the group's table was not read"); (lost == 0) != c.stays {
					f.Errorf("%d terms ended because the table was not read", lost)
				}
				f.srv.Client("b").OnRequest(nil)
				f.sleep(D + I)
				f.wantShape("a b[2 2]")
				a.quit()
				b.quit()
			})
		})
	}
}

// A member that reads the pages of new keys slowly keeps its term, because it keeps the pages that it has read.
func TestGroupSlowPages(t *testing.T) {
	inFleet(t, func(f *fleet) {
		var long []string
		for i := range 3000 { // in six pages
			long = append(long, fmt.Sprintf("%0250d", i))
		}
		runners := f.spreadThree()
		f.srv.Client("c").OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
			if r.Verb == "get" && strings.HasPrefix(r.Name, name+"-k-") {
				fault.After = I / 2
			}
			return fault
		})
		runners = append(runners, f.spread("d", Keys(long...)))
		f.sleep(3 * D)
		f.wantShape("a b c d[3000 4 4 4]")
		if n := f.logged("the group's table was not read"); n != 0 {
			f.Errorf("%d terms ended because the table was not read", n)
		}
		for _, r := range runners {
			r.quit()
		}
	})
}

// Pages that were read before a request failed are read again if they do not fit the others any more.
func TestGroupPagesChanged(t *testing.T) {
	inFleet(t, func(f *fleet) {
		var monitor Monitor
		a := f.spread("a", Keys(numbered(2)...), WithMonitor(&monitor))
		f.sleep(time.Second)
		g, keys := monitor.allGroups()[0], numbered(5)
		digest := shards.Digest(keys)
		if err := g.publish(f.Context(), digest, keys); err != nil {
			f.Fatal(err)
		}
		g.keepPages(digest, []string{"damaged"})
		if _, err := g.names(f.Context(), digest); err == nil || errors.Is(err, errKeysMissing) {
			f.Errorf("at first: %v", err)
		}
		if got, err := g.names(f.Context(), digest); err != nil || !slices.Equal(got, keys) {
			f.Errorf("then: %v, %v", got, err)
		}
		a.quit()
	})
}

// A table that is damaged after each write is not written in a hot loop.
func TestGroupTableDamagedAgain(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys(numbered(2)...))
		f.sleep(3 * I)
		damage := func() {
			f.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Annotations[tableAnnotation] = "rubbish" })
		}
		writes := f.tableWrites()
		var over atomic.Bool
		f.srv.OnCommit(func(c leasetest.Change) {
			if !over.Load() && c.New.Name == name && c.New.Annotations[tableAnnotation] != "rubbish" {
				go damage()
			}
		})
		damage()
		f.sleep(20 * I)
		if n := writes(); n < 10 || n > 60 {
			f.Errorf("%d writes of the table, want two in each renew interval", n)
		}
		over.Store(true)
		f.sleep(2 * D)
		f.wantShape("a[2]")
		a.quit()
	})
}

// A controller that restores a table again and again, which its members have gone beyond, causes few new ones. The
// first comes at once.
func TestGroupTableRestoredAgain(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys(numbered(2)...))
		f.sleep(I)
		old := f.lease().Annotations[tableAnnotation]
		b := f.spread("b", Keys(numbered(2)...))
		f.sleep(3 * I)
		f.wantShape("a b[1 1]")
		restore := func() {
			f.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Annotations[tableAnnotation] = old })
		}
		writes := f.tableWrites()
		var over atomic.Bool
		f.srv.OnCommit(func(c leasetest.Change) {
			if !over.Load() && c.New.Name == name && c.New.Annotations[tableAnnotation] != old {
				go restore()
			}
		})
		restore()
		f.sleep(time.Second)
		if n := writes(); n < 2 {
			f.Errorf("%d writes of the table, want a new one at once", n)
		}
		f.sleep(20 * I)
		if n := writes(); n < 10 || n > 100 {
			f.Errorf("%d writes of the table, want at most four in each renew interval", n)
		}
		over.Store(true)
		f.sleep(3 * D)
		f.wantShape("a b[1 1]")
		a.quit()
		b.quit()
	})
}

// Keys that have no owner because a new table gives nothing for long are logged too.
func TestGroupUnownedWhileClosed(t *testing.T) {
	for _, c := range []struct {
		name string
		join func(f *fleet, member string) (quit func())
	}{
		{"Spread", func(f *fleet, member string) func() { return f.spread(member, Keys(numbered(4)...)).quit }},
		{"Join", func(f *fleet, member string) func() {
			r := f.join(member, 4)
			return func() { r.quit() }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				quitA := c.join(f, "a")
				f.sleep(time.Second)
				quitB := c.join(f, "b")
				f.sleep(2 * I)
				f.wantShape("a b[2 2]")
				const mute = name + "-m-0123456789ab" // whose report cannot be read
				now := metav1.NowMicro()
				f.srv.Put(&coordinationv1.Lease{
					ObjectMeta: metav1.ObjectMeta{
						Namespace: ns, Name: mute, Labels: map[string]string{groupLabel: name},
						Annotations: map[string]string{memberAnnotation: "rubbish"},
					},
					Spec: coordinationv1.LeaseSpec{
						HolderIdentity: new("mute"), LeaseDurationSeconds: new(int32(3600)),
						AcquireTime: &now, RenewTime: &now,
					},
				})
				f.srv.Delete(ns, name)
				f.sleep(D + time.Second/2) // it would give them by then, but for that report
				if n := f.logged("keys of the group have no owner"); n != 0 {
					f.Errorf("%d lines about keys without an owner, want none yet", n)
				}
				f.sleep(2 * D)
				if n := f.logged("keys of the group have no owner"); n != 1 || f.logged("count=4") != 1 {
					f.Errorf("%d lines about keys without an owner, want one that counts 4", n)
				}
				f.srv.Edit(ns, mute, func(l *coordinationv1.Lease) { l.Spec = coordinationv1.LeaseSpec{} })
				f.sleep(D)
				f.wantShape("a b[2 2]")
				quitA()
				quitB()
			})
		})
	}
}

// A key that a member drops, while nobody can read its new set, is not given to it again: another has it.
func TestGroupDroppedKey(t *testing.T) {
	inFleet(t, func(f *fleet) {
		sets := make(chan []string, 1)
		sets <- numbered(4)
		a := f.spread("a", Keys(numbered(4)...))
		f.sleep(time.Second)
		b := f.spread("b", sets)
		f.sleep(3 * I)
		f.wantShape("a b[2 2]")
		dropped := f.owners()["b"]
		f.srv.Client("b").OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
			if r.Verb == "create" {
				fault.Err = leasetest.ServiceUnavailable()
			}
			return fault
		})
		sets <- slices.Clone(f.owners()["a"])
		f.sleep(2 * I)
		writes := f.tableWrites()
		f.sleep(time.Minute)
		if n := writes(); n != 0 {
			f.Errorf("%d writes of the table in a minute, want none", n)
		}
		f.wantShape("a b[2 2]")
		for _, key := range dropped {
			if slices.Contains(f.owners()["b"], key) {
				f.Errorf("b has %s, which it has dropped", key)
			}
		}
		f.srv.Client("b").OnRequest(nil)
		f.sleep(3 * I)
		f.wantShape("a b[2 2]")
		report, err := shards.DecodeReport(f.srv.Lease(ns, f.leaseOf("b")).Annotations[memberAnnotation])
		if err != nil || report.Refused != nil {
			f.Errorf("b refuses %v although its new set is published; %v", report.Refused, err)
		}
		a.quit()
		b.quit()
	})
}

// S4: the Lease of the next in line is deleted, and it joins again. Until its former term is certainly over the table
// has both, and the member after it is the next in line.
func TestGroupNextJoinsAgain_S4(t *testing.T) {
	inFleet(t, func(f *fleet) {
		runners := f.spreadThree()
		f.srv.Delete(ns, f.leaseOf("b"))
		f.sleep(2 * time.Second)
		f.srv.Client("a").Partition(true)
		f.sleep(D + time.Second)
		if owned := f.owned() - len(f.owners()["a"]); owned != 12 {
			f.Errorf("%d keys are owned, want 12: %v", owned, f.owners())
		}
		f.srv.Client("a").Partition(false)
		for _, r := range runners {
			r.quit()
		}
	})
}

// S4: the assigner crashes while it waits for a member whose Lease was deleted. The next in line does not begin the
// wait again.
func TestGroupCrashDuringWait_S4(t *testing.T) {
	for _, waited := range []time.Duration{0, D - time.Second} {
		t.Run(fmt.Sprint(waited), func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				runners := f.spreadThree()
				f.srv.Client("c").Partition(true)
				f.srv.Delete(ns, f.leaseOf("c"))
				f.sleep(waited)
				f.srv.Client("a").Partition(true)
				f.sleep(D + time.Second)
				if owned := f.owned() - len(f.owners()["a"]); owned != 12 {
					f.Errorf("%d keys are owned, want 12: %v", owned, f.owners())
				}
				for _, member := range []string{"a", "c"} {
					f.srv.Client(member).Partition(false)
				}
				for _, r := range runners {
					r.quit()
				}
			})
		})
	}
}

// S4: the assigner crashes while a new table waits. Its successor waits for D after it took over, because it cannot
// know what was deleted before: that is a limit.
func TestGroupCrashBeforeTableOpens_S4(t *testing.T) {
	inFleet(t, func(f *fleet) {
		runners := f.spreadThree()
		f.srv.Delete(ns, name)
		f.sleep(D / 2)
		f.wantShape("[]")
		table, err := shards.DecodeTable(f.lease().Annotations[tableAnnotation])
		if err != nil {
			f.Fatal(err)
		}
		for _, l := range f.memberLeases() {
			if l.Name == table.Assigner.Lease {
				f.srv.Client(*l.Spec.HolderIdentity).Partition(true)
			}
		}
		if took := f.await(12, 3*D); took > 2*D+time.Second {
			f.Errorf("owned again %v after the crash, want at most %v", took, 2*D+time.Second)
		} else {
			f.Logf("owned again %v after the crash", took)
		}
		for _, member := range []string{"a", "b", "c"} {
			f.srv.Client(member).Partition(false)
		}
		for _, r := range runners {
			r.quit()
		}
	})
}

// S5: what a crash, an outage, a member that joins and one that leaves cost in writes does not grow with the keys.
func TestGroupWritesDoNotGrow_S5(t *testing.T) {
	costs := func(t *testing.T, keys int) (costs []int) {
		inFleet(t, func(f *fleet) {
			var runners []*runner
			join := func() {
				runners = append(runners, f.spread(fmt.Sprint("m", len(runners)), Keys(numbered(keys)...)))
			}
			for range 3 {
				join()
				f.sleep(time.Second)
			}
			f.sleep(2 * I)
			written := f.tableWrites()
			for _, event := range []func(){
				func() { f.srv.Client("m1").Partition(true) },
				func() { f.srv.Client("m1").Partition(false) },
				func() {
					for i := range runners {
						f.srv.Client(fmt.Sprint("m", i)).Partition(true)
					}
					f.sleep(R + time.Second)
					for i := range runners {
						f.srv.Client(fmt.Sprint("m", i)).Partition(false)
					}
				},
				join,
				func() { runners[0].quit() },
			} {
				before := written()
				event()
				f.sleep(2*D + I)
				if owned := f.owned(); owned != keys {
					f.Errorf("%d of %d keys are owned", owned, keys)
				}
				costs = append(costs, written()-before)
			}
			for _, r := range runners {
				r.quit()
			}
		})
		return costs
	}
	few, many := costs(t, 12), costs(t, 1200)
	t.Logf("writes of the table with 12 keys: %v, with 1,200: %v", few, many)
	for i, n := range many {
		if n > few[i]+3 { // who comes first decides in which writes the members come back
			t.Errorf("event %d: %d writes with 1,200 keys, %d with 12", i, n, few[i])
		}
	}
}
