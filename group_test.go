package leasehold

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold/internal/shards"
	"github.com/leasehold-go/leasehold/leasetest"
)

// deafen makes a client that hears of nothing, but whose writes are done.
func deafen(c *leasetest.Client) {
	c.SilenceWatches()
	c.OnRequest(func(r leasetest.Request) leasetest.Fault {
		if r.Verb == "get" || r.Verb == "list" || r.Verb == "watch" {
			return leasetest.Fault{Drop: leasetest.TheRequest}
		}
		return leasetest.Fault{}
	})
}

// A member that has not heard of a new epoch may live for R after its Lease was deleted, however long ago the epoch
// began.
func TestGroupDeletedHolderOfAnEpoch(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys(numbered(4)...))
		b := f.spread("b", Keys(numbered(4)...))
		f.sleep(2 * I)
		f.wantShape("a b[2 2]")
		var lease string // of a
		for _, s := range f.sessionsOf("a") {
			lease = s.Holder().Name
		}
		deafen(f.srv.Client("a"))
		f.srv.Delete(ns, name)
		f.sleep(D - time.Second)
		f.srv.Delete(ns, lease)
		f.sleep(3 * D)
		if owners := f.owners(); len(owners["b"]) != 4 {
			f.Errorf("owners %v, want b of all", owners)
		}
		f.srv.Client("a").OnRequest(nil)
		f.srv.Client("a").CloseWatches(nil)
		f.sleep(2 * D)
		f.wantShape("a b[2 2]")
		a.quit()
		b.quit()
	})
}

// Leases that have lost the group's label stay in the group, and get it back.
func TestGroupLabelRemoved(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys(numbered(4)...))
		f.sleep(time.Second)
		b := f.spread("b", Keys(numbered(4)...))
		f.sleep(2 * I)
		f.wantShape("a b[2 2]")
		for _, lease := range []string{name, f.sessionsOf("b")[0].Holder().Name} {
			f.srv.Edit(ns, lease, func(l *coordinationv1.Lease) { delete(l.Labels, groupLabel) })
		}
		f.sleep(2 * D)
		f.wantShape("a b[2 2]")
		b.quit()
		f.sleep(time.Second)
		f.wantShape("a[4]")
		if f.srv.Lease(ns, name).Labels[groupLabel] != name {
			f.Error("the table did not get its label back")
		}
		a.quit()
	})
}

// A table whose annotations and labels are all removed is still the group's, for its members and for those that join.
func TestGroupTableStripped(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys(numbered(4)...))
		f.sleep(I)
		f.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Annotations, l.Labels = nil, nil })
		b := f.spread("b", Keys(numbered(4)...))
		f.sleep(2*D + I)
		f.wantShape("a b[2 2]")
		if got := f.srv.Lease(ns, name).Labels[groupLabel]; got != name {
			f.Errorf("the table has the label %q, want %q", got, name)
		}
		a.quit()
		b.quit()
		if b.err != context.Canceled {
			f.Errorf("the member that joined ended with %v", b.err)
		}
	})
}

// The Lease of a member that has crashed is fenced also if it has lost the group's label, so that no list has it, and
// members list more often than its duration because they may not watch.
func TestGroupUnlabelledIsFenced(t *testing.T) {
	for _, c := range []struct {
		name   string
		before func(f *fleet) // what happens before a has read the Lease
		after  func(f *fleet, lease string)
	}{
		{"and nothing else happens", func(*fleet) {}, func(*fleet, string) {}},
		{"in a new epoch", func(f *fleet) { f.srv.Delete(ns, name) }, func(*fleet, string) {}},
		{"it is edited", func(*fleet) {}, func(f *fleet, lease string) {
			f.srv.Edit(ns, lease, func(l *coordinationv1.Lease) { l.Annotations["theirs"] = "1" })
		}},
		{"it is deleted", func(*fleet) {}, func(f *fleet, lease string) { f.srv.Delete(ns, lease) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				f.srv.Client("a").OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
					if r.Verb == "watch" {
						fault.Err = leasetest.Forbidden(r)
					}
					return fault
				})
				a := f.spread("a", Keys(numbered(4)...))
				f.sleep(time.Second)
				b := f.spread("b", Keys(numbered(4)...))
				f.sleep(4 * I)
				f.wantShape("a b[2 2]")
				lease := f.leaseOf("b")
				f.srv.Client("b").Partition(true)
				f.srv.Edit(ns, lease, func(l *coordinationv1.Lease) { delete(l.Labels, groupLabel) })
				c.before(f)
				f.sleep(3 * I)
				c.after(f, lease)
				f.sleep(3 * D)
				f.wantShape("a[4]")
				before := f.requests("a")
				f.sleep(4 * D)
				if sent, most := f.requests("a")-before, int(4*D/I)*8; sent > most {
					f.Errorf("%d requests in %v, want at most %d", sent, 4*D, most)
				}
				f.srv.Client("b").Partition(false)
				a.quit()
				b.quit()
			})
		})
	}
}

// While a new set of keys cannot be published, the one before, which members go by, is left as it is.
func TestSpreadKeysNotPublished(t *testing.T) {
	inFleet(t, func(f *fleet) {
		sets := make(chan []string, 1)
		sets <- numbered(4)
		a := f.spread("a", sets)
		f.sleep(I)
		page := name + "-k-" + shards.Digest(numbered(4)) + "-0"
		before := f.srv.Lease(ns, page).Annotations[keysAnnotation]
		f.srv.Client("a").OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
			if r.Verb == "create" && strings.HasPrefix(r.Name, name+"-k-") && r.Name != page {
				fault.Err = leasetest.ServiceUnavailable()
			}
			return fault
		})
		sets <- numbered(6)
		f.sleep(I)
		f.srv.Client("a").Partition(true) // it begins another term, in which it publishes its keys again
		f.sleep(R + time.Second)
		f.srv.Client("a").Partition(false)
		f.sleep(D)
		if got := f.srv.Lease(ns, page).Annotations[keysAnnotation]; got != before {
			f.Errorf("the page has %q, want %q", got, before)
		}
		f.wantShape("a[4]")
		f.srv.Client("a").OnRequest(nil)
		f.sleep(2 * D)
		f.wantShape("a[6]")
		a.quit()
	})
}

// A set of keys that cannot be published does not keep the next from taking its place.
func TestSpreadKeysReplacedUnpublished(t *testing.T) {
	inFleet(t, func(f *fleet) {
		sets := make(chan []string, 1)
		sets <- numbered(4)
		a := f.spread("a", sets)
		f.sleep(I)
		f.srv.Client("a").OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
			if r.Verb == "create" && r.Name == name+"-k-"+shards.Digest(numbered(6))+"-0" {
				fault.Err = leasetest.Forbidden(r)
			}
			return fault
		})
		sets <- numbered(6)
		f.sleep(2 * I)
		f.wantShape("a[4]")
		sets <- numbered(5)
		f.sleep(2 * I)
		f.wantShape("a[5]")
		a.quit()
	})
}

// A set of keys is published again in each term, also where that fails at first, and where a page is deleted between
// the attempt to create it and the read.
func TestGroupKeysPublishedUntilTheyAre(t *testing.T) {
	page := name + "-k-" + shards.Digest(numbered(4)) + "-0"
	exists := apierrors.NewAlreadyExists(coordinationv1.Resource(leasesResource), page)
	for _, c := range []struct {
		name string
		err  error
		term bool // in another term than the first
	}{
		{"refused in the first term", leasetest.ServiceUnavailable(), false},
		{"refused in another term", leasetest.ServiceUnavailable(), true},
		{"deleted in the first term", exists, false},
		{"deleted in another term", exists, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				var creates atomic.Int64
				fail := func(r leasetest.Request) (fault leasetest.Fault) {
					if r.Verb == "create" && r.Name == page && creates.Add(1) <= 4 {
						fault.Err = c.err
					}
					return fault
				}
				if !c.term {
					f.srv.Client("a").OnRequest(fail)
				}
				a := f.spread("a", Keys(numbered(4)...))
				if c.term {
					f.sleep(I)
					f.srv.Client("a").Partition(true)
					f.sleep(R + time.Second)
					f.srv.Delete(ns, page)
					f.srv.Client("a").OnRequest(fail)
					f.srv.Client("a").Partition(false)
					f.sleep(D)
				}
				f.sleep(6 * I)
				f.wantShape("a[4]")
				if f.srv.Lease(ns, page) == nil {
					f.Errorf("no page after %d attempts", creates.Load())
				}
				a.quit()
			})
		})
	}
}

// Keys that somebody has edited do not keep the members from sharing theirs out.
func TestGroupKeysEdited(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.spread("a", Keys("k1", "k2"))
		f.sleep(time.Second)
		page := name + "-k-" + shards.Digest([]string{"k2", "k3"}) + "-0"
		f.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
			Namespace: ns, Name: page, Labels: map[string]string{groupLabel: name},
			Annotations: map[string]string{keysAnnotation: shards.Pages([]string{"k9"})[0]},
		}})
		b := f.spread("b", Keys("k2", "k3"))
		f.sleep(2 * I)
		c := f.spread("c", Keys("k1", "k2"))
		f.sleep(2 * I)
		f.wantShape("a b c[1 1 1]")
		for _, r := range []*runner{a, b, c} {
			r.quit()
		}
	})
}

// A member of a ring gives up what it has when a table with another number of buckets has taken the place of its own.
func TestGroupOtherBuckets(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.join("a", 2)
		f.sleep(time.Second)
		b := f.join("b", 4)
		f.sleep(2 * I)
		f.wantShape("a[2]")
		f.srv.Client("a").OnRequest(func(r leasetest.Request) (fault leasetest.Fault) {
			if r.Verb == "create" {
				fault.Err = leasetest.ServiceUnavailable()
			}
			return fault
		})
		f.srv.Delete(ns, name)
		f.sleep(2 * D)
		f.wantShape("b[4]")
		a.quit()
		b.quit()
	})
}

// A bucket's work may be said to be over twice, by the last that leaves and by the ring. The second time may come late,
// when the bucket was gained again.
func TestRingReturnedTwice(t *testing.T) {
	inFleet(t, func(f *fleet) {
		a := f.join("a", 1, WithSettle(time.Hour))
		f.sleep(2 * time.Second)
		first := f.sessionsOf("a")[0].state.(*keySession)
		a.Ring.stop(first)
		a.Ring.stop(first)
		if n := len(a.draining); n != 0 {
			f.Errorf("%d sessions are to drain, want none", n)
		}
		f.sleep(2 * I)
		again := f.sessionsOf("a")
		if len(again) != 1 || again[0].state == first {
			f.Fatalf("sessions %v, want the bucket gained again", again)
		}
		b := f.join("b", 1, WithWeight(10)) // that is to have what is free
		f.sleep(time.Second)
		a.group.returned(first, false)
		f.sleep(2 * I)
		f.wantShape("a[1]")
		a.quit()
		b.quit()
	})
}

// A panic in the function of WithBackOff ends what it was given to, whenever it is called.
func TestGroupBackOffPanics_G13(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(ctx context.Context, opts ...Option)
	}{
		{"Spread", func(ctx context.Context, opts ...Option) {
			Spread(ctx, Keys("x", "y"), func(s Session, _ string) error { <-s.Done(); return nil }, opts...)
		}},
		{"Join", func(ctx context.Context, opts ...Option) {
			if r, err := Join(ctx, 4, opts...); err == nil {
				r.Wait()
			}
		}},
		{"Shares", func(ctx context.Context, opts ...Option) {
			for range Shares(ctx, opts...) {
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for returns := range int64(30) {
				inFleet(t, func(f *fleet) {
					var requests, calls atomic.Int64
					f.srv.Client("a").OnRequest(func(leasetest.Request) leasetest.Fault {
						if requests.Add(1)%2 == 0 {
							return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
						}
						return leasetest.Fault{}
					})
					ctx, cancel := context.WithTimeout(f.Context(), 2*D)
					defer cancel()
					defer func() {
						if r := recover(); r != "the program's" && (r != nil || calls.Load() > returns) {
							f.Errorf("recovered %v after %d calls", r, calls.Load())
						}
					}()
					c.run(ctx, f.options("a", WithBackOff(func() backoff.BackOff {
						if calls.Add(1) > returns {
							panic("the program's")
						}
						return backoff.NewConstantBackOff(time.Second)
					}))...)
				})
			}
		})
	}
}

// A BackOff that panics, blocks or exits its goroutine is asked by the group's requests too.
func TestGroupBackOffMisbehaves_G13(t *testing.T) {
	for _, what := range misdeeds {
		t.Run(what.name, func(t *testing.T) {
			inFleet(t, func(f *fleet) {
				until := make(chan struct{})
				f.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					if strings.Contains(r.Name, "-k-") && r.Verb == "create" {
						return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
					}
					return leasetest.Fault{}
				})
				ctx, cancel := context.WithTimeout(f.Context(), 2*D)
				defer cancel()
				var recovered any
				func() {
					defer func() { recovered = recover() }()
					first := true // newOptions tries the function
					Spread(ctx, Keys("x"), func(s Session, _ string) error { <-s.Done(); return nil },
						f.options("a", WithBackOff(func() backoff.BackOff {
							defer func() { first = false }()
							if first {
								return backoff.NewConstantBackOff(time.Second)
							}
							return hostileBackOff{func() { what.do(until) }}
						}))...)
				}()
				if want := what.name == "panics"; (recovered != nil) != want || (ctx.Err() == nil) != want {
					f.Errorf("recovered %v, context %v", recovered, ctx.Err())
				}
				close(until)
				f.sleep(time.Second)
			})
		})
	}
}
