package leasetest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/leasetest"
)

// heard returns the events that the watch has delivered, `MODIFIED b` for each, and `closed` for its end.
func heard(w watch.Interface) (said []string) {
	for {
		synctest.Wait()
		select {
		case ev, ok := <-w.ResultChan():
			if !ok {
				return append(said, "closed")
			}
			said = append(said, strings.TrimSpace(fmt.Sprintf("%s %s", ev.Type, about(ev))))
		default:
			return said
		}
	}
}

func about(ev watch.Event) string {
	switch o := ev.Object.(type) {
	case *metav1.Status:
		return fmt.Sprint(o.Code)
	case *coordinationv1.Lease:
		if ev.Type == watch.Bookmark {
			return o.ResourceVersion
		}
		return *o.Spec.HolderIdentity
	case nil:
		return "nil"
	}
	return fmt.Sprintf("%T", ev.Object)
}

// watched is a server with the lease held by "a", and a watch of a client from then on.
type watched struct {
	*testing.T
	srv    *leasetest.Server
	client *leasetest.Client
	first  *coordinationv1.Lease
	watch.Interface
}

func (w watched) open(opts metav1.ListOptions) watch.Interface {
	i, err := w.client.Leases(ns).Watch(w.Context(), opts)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(i.Stop)
	return i
}

func (w watched) take(holder string) {
	w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = &holder })
}

func (w watched) want(said ...string) {
	w.Helper()
	if got := heard(w); !slices.Equal(got, said) {
		w.Errorf("heard %q, want %q", got, said)
	}
}

func TestWatch(t *testing.T) {
	for _, tt := range []struct {
		name string
		test func(w watched)
	}{
		{"an operator's edits, deletion and restoration", func(w watched) {
			w.take("b")
			w.srv.Delete(ns, name)
			w.srv.Put(lease("c"))
			w.want("MODIFIED b", "DELETED b", "ADDED c")
		}},
		{"closed cleanly", func(w watched) {
			w.take("b")
			w.client.CloseWatches(nil)
			w.take("c")
			w.want("MODIFIED b", "closed")
		}},
		{"closed with an error", func(w watched) {
			w.srv.CloseWatches(leasetest.InternalError())
			w.want("ERROR 500", "closed")
		}},
		{"of another client, not closed", func(w watched) {
			w.srv.Client("other").CloseWatches(nil)
			w.want()
		}},
		{"silent, then all of it", func(w watched) {
			w.client.SilenceWatches()
			w.take("b")
			w.want()
			w.client.ResumeWatches(true)
			w.take("c")
			w.want("MODIFIED b", "MODIFIED c")
		}},
		{"silent, then without what was missed", func(w watched) {
			w.client.SilenceWatches()
			w.take("b")
			w.client.ResumeWatches(false)
			w.take("c")
			w.want("MODIFIED c")
		}},
		{"opened during a silence, heard", func(w watched) {
			w.client.SilenceWatches()
			second := w.open(metav1.ListOptions{})
			if got := heard(second); !slices.Equal(got, []string{"ADDED a"}) {
				w.Errorf("heard %q", got)
			}
		}},
		{"closed while silent, learned afterwards", func(w watched) {
			w.client.SilenceWatches()
			w.client.CloseWatches(nil)
			w.want()
			w.client.ResumeWatches(true)
			w.want("closed")
		}},
		{"late events, in order", func(w watched) {
			delays := []time.Duration{3 * time.Second, time.Second}
			w.client.OnEvent(func(watch.Event) (d time.Duration) {
				d, delays = delays[0], delays[1:]
				return d
			})
			w.take("b")
			w.take("c")
			time.Sleep(2 * time.Second)
			w.want()
			time.Sleep(time.Second)
			w.want("MODIFIED b", "MODIFIED c")
		}},
		{"replayed", func(w watched) {
			w.take("b")
			w.take("c")
			w.client.ReplayWatches(2)
			w.want("MODIFIED b", "MODIFIED c", "MODIFIED b", "MODIFIED c")
		}},
		{"odd events", func(w watched) {
			w.client.SendEvent(leasetest.Undecodable())
			w.client.SendEvent(watch.Event{Type: watch.Modified})
			w.client.SendEvent(watch.Event{Type: watch.Modified, Object: &metav1.PartialObjectMetadata{}})
			w.client.SendEvent(watch.Event{Type: "NONSENSE", Object: lease("x")})
			w.want("ERROR 500", "MODIFIED nil", "MODIFIED *v1.PartialObjectMetadata", "NONSENSE x")
		}},
		{"bookmarks on demand, to those who allow them", func(w watched) {
			second := w.open(metav1.ListOptions{ResourceVersion: w.first.ResourceVersion, AllowWatchBookmarks: true})
			w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "elsewhere", Name: "x"}})
			w.srv.Bookmark()
			w.want()
			if got := heard(second); !slices.Equal(got, []string{"BOOKMARK " + w.srv.ResourceVersion()}) {
				w.Errorf("heard %q", got)
			}
		}},
		{"from before a compaction: Expired", func(w watched) {
			w.take("b")
			w.srv.Compact()
			second := w.open(metav1.ListOptions{ResourceVersion: w.first.ResourceVersion})
			if got := heard(second); !slices.Equal(got, []string{"ERROR 410", "closed"}) {
				w.Errorf("heard %q", got)
			}
			third := w.open(metav1.ListOptions{ResourceVersion: w.srv.ResourceVersion()})
			w.take("c")
			if got := heard(third); !slices.Equal(got, []string{"MODIFIED c"}) {
				w.Errorf("heard %q", got)
			}
			w.want("MODIFIED b", "MODIFIED c")
		}},
		{"of a namespace, from before a compaction: Expired, unless there was a bookmark", func(w watched) {
			second := w.open(metav1.ListOptions{ResourceVersion: w.first.ResourceVersion, AllowWatchBookmarks: true})
			w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "elsewhere", Name: "x"}})
			w.srv.Bookmark()
			w.srv.Compact()
			if got := heard(second); !slices.Equal(got, []string{"BOOKMARK " + w.srv.ResourceVersion()}) {
				w.Errorf("heard %q", got)
			}
			third := w.open(metav1.ListOptions{ResourceVersion: w.first.ResourceVersion, AllowWatchBookmarks: true})
			if got := heard(third); !slices.Equal(got, []string{"ERROR 410", "closed"}) {
				w.Errorf("heard %q", got)
			}
			fourth := w.open(metav1.ListOptions{ResourceVersion: w.srv.ResourceVersion(), AllowWatchBookmarks: true})
			w.take("b")
			if got := heard(fourth); !slices.Equal(got, []string{"MODIFIED b"}) {
				w.Errorf("heard %q", got)
			}
		}},
		{"from before the server's memory: Expired", func(w watched) {
			for i := range 1500 {
				w.take(fmt.Sprint(i))
			}
			second := w.open(metav1.ListOptions{ResourceVersion: w.first.ResourceVersion})
			if got := heard(second); !slices.Equal(got, []string{"ERROR 410", "closed"}) {
				w.Errorf("heard %q", got)
			}
		}},
		{"too slow: closed, and nobody has waited", func(w watched) {
			for i := range 1500 {
				w.take(fmt.Sprint(i))
			}
			if got := heard(w); len(got) > 2 || got[len(got)-1] != "closed" {
				w.Errorf("heard %d events, the last %q; want closed", len(got), got[len(got)-1])
			}
		}},
		{"more leases than a slow reader may leave unread: listed all the same", func(w watched) {
			for i := range 1500 {
				l := lease("a")
				l.Name = fmt.Sprint(i)
				w.srv.Put(l)
			}
			if got := heard(w.open(metav1.ListOptions{})); len(got) != 1501 || got[1500] == "closed" {
				w.Errorf("heard %d events, the last %q; want 1501", len(got), got[len(got)-1])
			}
		}},
		{"counted", func(w watched) {
			if n := w.client.WatchCount(); n != 1 {
				w.Errorf("got %d, want 1", n)
			}
			w.Stop()
			w.want("closed")
			if n := w.client.WatchCount(); n != 0 {
				w.Errorf("got %d, want 0", n)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := leasetest.NewServer()
				w := watched{T: t, srv: srv, client: srv.Client("a"), first: srv.Put(lease("a"))}
				w.Interface = w.open(metav1.ListOptions{ResourceVersion: w.first.ResourceVersion})
				tt.test(w)
			})
		})
	}
}
