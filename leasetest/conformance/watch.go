package conformance

import (
	"context"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

const byName = "metadata.name=" + name

var watchCases = []Case{
	{"watch goes on exactly from a resourceVersion", func(s *session) {
		a := s.held()
		b := s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`))
		w := s.watch(metav1.ListOptions{FieldSelector: byName, ResourceVersion: a.ResourceVersion})
		c := s.must(s.merge(`{"spec":{"holderIdentity":"c"}}`))
		w.want(watch.Modified, b)
		w.want(watch.Modified, c)
	}},
	{"watch sees deletion with a resourceVersion of its own, and creation", func(s *session) {
		a := s.held()
		w := s.watch(metav1.ListOptions{FieldSelector: byName, ResourceVersion: a.ResourceVersion})
		if err := s.Delete(s.ctx, name, metav1.DeleteOptions{}); err != nil {
			s.Fatal(err)
		}
		b := s.held()
		ev, l := w.next()
		if ev.Type != watch.Deleted {
			s.Fatalf("got %s, want DELETED", ev.Type)
		}
		s.wantNewer(a, l)
		s.wantNewer(l, b)
		s.want("spec", l.Spec, a.Spec)
		s.want("uid", l.UID, a.UID)
		w.want(watch.Added, b)
	}},
	{"watch without a resourceVersion begins with what there is", func(s *session) {
		a := s.held()
		w := s.watch(metav1.ListOptions{FieldSelector: byName})
		w.want(watch.Added, a)
		w.want(watch.Modified, s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`)))
	}},
	{"watch from 0 begins with what there is", func(s *session) {
		a := s.held()
		w := s.watch(metav1.ListOptions{FieldSelector: byName, ResourceVersion: "0"})
		// The server's cache may be behind the write, which then follows as an event.
		w.want(watch.Added, a)
		w.want(watch.Modified, s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`)))
	}},
	{"watch from the resourceVersion of a list misses nothing", func(s *session) {
		list, err := s.List(s.ctx, metav1.ListOptions{FieldSelector: byName})
		if err != nil || len(list.Items) != 0 || list.ResourceVersion == "" {
			s.Fatalf("got %s, %v", show(list), err)
		}
		a := s.held()
		s.watch(metav1.ListOptions{FieldSelector: byName, ResourceVersion: list.ResourceVersion}).want(watch.Added, a)
	}},
	{"watch of one lease does not see others", func(s *session) {
		a := s.held()
		w := s.watch(metav1.ListOptions{FieldSelector: byName, ResourceVersion: a.ResourceVersion})
		other := held()
		other.Name = "other"
		s.must(s.Create(s.ctx, other, create))
		w.want(watch.Modified, s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`)))
	}},
	{"watch of a namespace sees all leases there, and no others, in the order of their resourceVersions",
		func(s *session) {
			a := s.held()
			other := held()
			other.Name = "other"
			b := s.must(s.Create(s.ctx, other, create))
			w := s.watch(metav1.ListOptions{ResourceVersion: a.ResourceVersion, AllowWatchBookmarks: true})
			c := s.must(s.merge(`{"spec":{"holderIdentity":"c"}}`))
			if err := s.Delete(s.ctx, other.Name, metav1.DeleteOptions{}); err != nil {
				s.Fatal(err)
			}
			w.want(watch.Added, b)
			w.want(watch.Modified, c)
			ev, l := w.next()
			if ev.Type != watch.Deleted || l == nil || l.Name != other.Name || l.UID != b.UID {
				s.Fatalf("got %s %s, want %s deleted", ev.Type, show(ev.Object), other.Name)
			}
			s.wantNewer(c, l)
			again := s.watch(metav1.ListOptions{ResourceVersion: l.ResourceVersion, AllowWatchBookmarks: true})
			again.want(watch.Modified, s.must(s.merge(`{"spec":{"holderIdentity":"d"}}`)))
		}},
	{"watch of a namespace that allows bookmarks, from nowhere, ends what there is by one", func(s *session) {
		a := s.held()
		other := held()
		other.Name = "other"
		b := s.must(s.Create(s.ctx, other, create))
		w := s.watch(metav1.ListOptions{AllowWatchBookmarks: true})
		seen := map[string]string{}
		for {
			ev, l := w.next()
			if l == nil {
				s.Fatalf("got %s %s", ev.Type, show(ev.Object))
			}
			if ev.Type == watch.Bookmark {
				if s.rv(l) < s.rv(b) {
					s.Errorf("bookmark at %s, lease at %s", l.ResourceVersion, b.ResourceVersion)
				}
				break
			}
			seen[l.Name] = l.ResourceVersion
		}
		if seen[a.Name] != a.ResourceVersion || seen[b.Name] != b.ResourceVersion {
			s.Errorf("saw %v", seen)
		}
		w.want(watch.Modified, s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`)))
	}},
	{"watch by label sees leases enter and leave", func(s *session) {
		a := s.held()
		w := s.watch(metav1.ListOptions{LabelSelector: "a=1", ResourceVersion: a.ResourceVersion})
		b := s.must(s.merge(`{"metadata":{"labels":{"a":"1"}}}`))
		w.want(watch.Added, b)
		c := s.must(s.merge(`{"metadata":{"labels":{"a":"2"}}}`))
		gone := b.DeepCopy()
		gone.ResourceVersion = c.ResourceVersion
		w.want(watch.Deleted, gone)
	}},
	{"watch of all namespaces", func(s *session) {
		a := s.held()
		w, err := s.client.Leases("").Watch(s.ctx,
			metav1.ListOptions{FieldSelector: byName + ",metadata.namespace=" + s.namespace,
				ResourceVersion: a.ResourceVersion})
		if err != nil {
			s.Fatal(err)
		}
		defer w.Stop()
		events{s, w}.want(watch.Modified, s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`)))
	}},
	{"a write without a change is no event", func(s *session) {
		a := s.held()
		w := s.watch(metav1.ListOptions{FieldSelector: byName, ResourceVersion: a.ResourceVersion})
		s.must(s.merge(`{"spec":{"holderIdentity":"a"}}`))
		w.want(watch.Modified, s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`)))
	}},
	{"a write as a dry run is no event", func(s *session) {
		a := s.held()
		w := s.watch(metav1.ListOptions{FieldSelector: byName, ResourceVersion: a.ResourceVersion})
		in := a.DeepCopy()
		in.Spec.HolderIdentity = ptr("dry")
		s.must(s.Update(s.ctx, in, metav1.UpdateOptions{DryRun: []string{"All"}}))
		w.want(watch.Modified, s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`)))
	}},
	{"watch from a resourceVersion of the future is silent", func(s *session) {
		a := s.held()
		w := s.watch(metav1.ListOptions{FieldSelector: byName, ResourceVersion: "99999999",
			TimeoutSeconds: ptr(int64(1))})
		s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`))
		w.wantClosed()
		s.wantNewer(a, s.get())
	}},
	{"watch from a resourceVersion that is no number is a 500", func(s *session) {
		_, err := s.Watch(s.ctx, metav1.ListOptions{ResourceVersion: "x"})
		s.wantError(err, 500, "", `resourceVersion: Invalid value: "x": strconv.ParseUint: parsing "x": invalid syntax`)
	}},
	{"watch by an unknown field is a bad request", func(s *session) {
		_, err := s.Watch(s.ctx, metav1.ListOptions{FieldSelector: "spec.holderIdentity=a"})
		s.wantError(err, 400, metav1.StatusReasonBadRequest,
			`"spec.holderIdentity" is not a known field selector: only "metadata.name", "metadata.namespace"`)
		_, err = s.List(s.ctx, metav1.ListOptions{FieldSelector: "spec.holderIdentity=a"})
		s.wantError(err, 400, metav1.StatusReasonBadRequest)
	}},
	{"watch ends after timeoutSeconds", func(s *session) {
		a := s.held()
		start := time.Now()
		s.watch(metav1.ListOptions{ResourceVersion: a.ResourceVersion, TimeoutSeconds: ptr(int64(1))}).wantClosed()
		if d := time.Since(start); d < 900*time.Millisecond {
			s.Errorf("closed after %v, want 1s", d)
		}
	}},
	{"watch ends at Stop", func(s *session) {
		w := s.watch(metav1.ListOptions{ResourceVersion: s.held().ResourceVersion})
		w.Stop()
		w.wantEnd()
	}},
	{"watch ends with its context", func(s *session) {
		ctx, cancel := context.WithCancel(s.ctx)
		w, err := s.Watch(ctx, metav1.ListOptions{ResourceVersion: s.held().ResourceVersion})
		if err != nil {
			s.Fatal(err)
		}
		defer w.Stop()
		cancel()
		events{s, w}.wantEnd()
	}},
	{"watch can begin with the state and a bookmark after it", func(s *session) {
		a := s.held()
		w := s.watch(metav1.ListOptions{
			SendInitialEvents: ptr(true), AllowWatchBookmarks: true,
			ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
		})
		w.want(watch.Added, a)
		ev, l := w.next()
		if ev.Type != watch.Bookmark || l == nil || l.Annotations[metav1.InitialEventsAnnotationKey] != "true" {
			s.Fatalf("got %s %s, want a bookmark that ends the initial events", ev.Type, show(ev.Object))
		}
		if s.rv(l) < s.rv(a) {
			s.Errorf("bookmark at %s, lease at %s", l.ResourceVersion, a.ResourceVersion)
		}
	}},
	{"watch that allows bookmarks, from nowhere, begins the same way", func(s *session) {
		a := s.held()
		w := s.watch(metav1.ListOptions{AllowWatchBookmarks: true})
		w.want(watch.Added, a)
		if ev, l := w.next(); ev.Type != watch.Bookmark || l == nil {
			s.Fatalf("got %s %s, want a bookmark", ev.Type, show(ev.Object))
		}
	}},
	{"resourceVersionMatch is not for a plain watch", func(s *session) {
		_, err := s.Watch(s.ctx, metav1.ListOptions{ResourceVersion: "1",
			ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan})
		s.wantError(err, 422, metav1.StatusReasonInvalid,
			"resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")
	}},
	{"list is sorted by name and selects", func(s *session) {
		for _, n := range []string{"c", "a", "b"} {
			s.must(s.Create(s.ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: n,
				Labels: map[string]string{"n": n}}}, create))
		}
		for selector, want := range map[string]string{"": "abc", "n=b": "b", "n in (a,c)": "ac", "n!=a": "bc",
			"m": ""} {
			list, err := s.List(s.ctx, metav1.ListOptions{LabelSelector: selector})
			if err != nil {
				s.Fatal(err)
			}
			got := ""
			for _, l := range list.Items {
				got += l.Name
			}
			s.want("selected by "+selector, got, want)
		}
	}},
}
