// Package conformance describes the Lease API by a table of cases that a real API server and leasetest both pass, so
// that a test against leasetest is worth as much as one against a real server.
//
// Every case was first observed on kube-apiserver 1.36.3 with its default features.
package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// Case is one fact about the API.
type Case struct {
	Name string
	run  func(*session)
}

// Cases returns all cases.
func Cases() []Case {
	return slices.Concat(createCases, updateCases, patchCases, applyCases, validationCases, deleteCases, watchCases)
}

// Run tests all cases. newNamespace returns a client of the API under test, and a namespace that is empty and exists.
func Run(t *testing.T, newNamespace func(t *testing.T) (coordinationv1client.LeasesGetter, string)) {
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) {
			client, namespace := newNamespace(t)
			c.Test(t, client, namespace)
		})
	}
}

// Test tests one case, in an empty namespace.
func (c Case) Test(t *testing.T, client coordinationv1client.LeasesGetter, namespace string) {
	c.run(&session{
		T: t, ctx: t.Context(), namespace: namespace,
		client: client, LeaseInterface: client.Leases(namespace),
	})
}

// session is one case under way.
type session struct {
	*testing.T
	coordinationv1client.LeaseInterface
	client    coordinationv1client.LeasesGetter
	namespace string
	ctx       context.Context
}

const (
	manager = "conformance"
	name    = "lease"
)

var (
	create = metav1.CreateOptions{FieldManager: manager}
	update = metav1.UpdateOptions{FieldManager: manager}
	patch  = metav1.PatchOptions{FieldManager: manager}

	instant = time.Date(2026, 1, 2, 3, 4, 5, 123456000, time.UTC)
)

func ptr[T any](v T) *T { return &v }

func at(d time.Duration) *metav1.MicroTime { return &metav1.MicroTime{Time: instant.Add(d)} }

// held returns a lease as a holder writes it.
func held() *coordinationv1.Lease {
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: ptr("a"), LeaseDurationSeconds: ptr(int32(15)),
			AcquireTime: at(0), RenewTime: at(0), LeaseTransitions: ptr(int32(1)),
		},
	}
}

// must is for steps that prepare the fact under test.
func (s *session) must(l *coordinationv1.Lease, err error) *coordinationv1.Lease {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
	return l
}

func (s *session) held() *coordinationv1.Lease {
	s.Helper()
	return s.must(s.Create(s.ctx, held(), create))
}

func (s *session) get() *coordinationv1.Lease {
	s.Helper()
	return s.must(s.Get(s.ctx, name, metav1.GetOptions{}))
}

func (s *session) merge(format string, args ...any) (*coordinationv1.Lease, error) {
	return s.Patch(s.ctx, name, types.MergePatchType, fmt.Appendf(nil, format, args...), patch)
}

// apply applies the spec and metadata given as JSON members, `"spec":{…}`.
func (s *session) apply(manager string, force bool, format string, args ...any) (*coordinationv1.Lease, error) {
	body := `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease",` + fmt.Sprintf(format, args...) + `}`
	return s.Patch(s.ctx, name, types.ApplyYAMLPatchType, []byte(body),
		metav1.PatchOptions{FieldManager: manager, Force: &force})
}

// wantError checks the status of an error, and that its message contains each of the texts.
func (s *session) wantError(err error, code int32, reason metav1.StatusReason, texts ...string) {
	s.Helper()
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		s.Fatalf("got %v, want a status error %d %s", err, code, reason)
	}
	st := status.Status()
	if st.Code != code || st.Reason != reason {
		s.Errorf("got %d %s: %s, want %d %s", st.Code, st.Reason, st.Message, code, reason)
	}
	for _, text := range texts {
		if !strings.Contains(st.Message, text) {
			s.Errorf("message %q lacks %q", st.Message, text)
		}
	}
}

const stale = "the object has been modified; please apply your changes to the latest version and try again"

func (s *session) wantStale(err error) {
	s.Helper()
	s.wantError(err, 409, metav1.StatusReasonConflict, `leases.coordination.k8s.io "lease"`, stale)
}

func (s *session) want(what string, got, want any) {
	s.Helper()
	if g, w := show(got), show(want); g != w {
		s.Errorf("%s:\n got %s\nwant %s", what, g, w)
	}
}

func show(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// wantSpec compares the spec with JSON.
func (s *session) wantSpec(l *coordinationv1.Lease, want string) {
	s.Helper()
	var spec coordinationv1.LeaseSpec
	if err := json.Unmarshal([]byte(want), &spec); err != nil {
		s.Fatal(err)
	}
	s.want("spec", l.Spec, spec)
}

const heldSpec = `{"holderIdentity":"a","leaseDurationSeconds":15,"acquireTime":"2026-01-02T03:04:05.123456Z",` +
	`"renewTime":"2026-01-02T03:04:05.123456Z","leaseTransitions":1}`

func (s *session) rv(l *coordinationv1.Lease) uint64 {
	s.Helper()
	n, err := strconv.ParseUint(l.ResourceVersion, 10, 64)
	if err != nil {
		s.Fatal(err)
	}
	return n
}

// wantNewer checks that b was written after a, wantSame that it is a, unwritten.
func (s *session) wantNewer(a, b *coordinationv1.Lease) {
	s.Helper()
	if s.rv(b) <= s.rv(a) {
		s.Errorf("resourceVersion %s after %s, want a greater one", b.ResourceVersion, a.ResourceVersion)
	}
}

func (s *session) wantSame(a, b *coordinationv1.Lease) {
	s.Helper()
	s.want("lease", b, a)
}

// wantOwners compares managedFields, in any order, with entries like `a Apply: holderIdentity renewTime labels.app`.
func (s *session) wantOwners(l *coordinationv1.Lease, want ...string) {
	s.Helper()
	got := []string{}
	for _, e := range l.ManagedFields {
		var fields map[string]any
		if e.FieldsV1 != nil {
			if err := json.Unmarshal(e.FieldsV1.GetRawBytes(), &fields); err != nil {
				s.Fatal(err)
			}
		}
		names := leaves("", fields)
		slices.Sort(names)
		got = append(got, fmt.Sprintf("%s %s: %s", e.Manager, e.Operation, strings.Join(names, " ")))
	}
	slices.Sort(got)
	slices.Sort(want)
	s.want("owners", got, append([]string{}, want...))
}

// leaves names the fields in a FieldsV1, without "spec." and "metadata." before them.
func leaves(prefix string, fields map[string]any) (names []string) {
	for key, inner := range fields {
		name := prefix + strings.TrimPrefix(key, "f:")
		if key == "." {
			name = prefix + "."
		}
		if m, ok := inner.(map[string]any); ok && len(m) > 0 {
			name += "."
			if name == "spec." || name == "metadata." {
				name = ""
			}
			names = append(names, leaves(name, m)...)
		} else {
			names = append(names, name)
		}
	}
	return names
}

const allFields = "acquireTime holderIdentity leaseDurationSeconds leaseTransitions renewTime"

// events is a watch in a case.
type events struct {
	*session
	watch.Interface
}

// watch opens a watch, which ends with the case.
func (s *session) watch(opts metav1.ListOptions) events {
	s.Helper()
	w, err := s.Watch(s.ctx, opts)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(w.Stop)
	return events{s, w}
}

// next returns the next event, with its lease if it has one.
func (e events) next() (watch.Event, *coordinationv1.Lease) {
	e.Helper()
	select {
	case ev, ok := <-e.ResultChan():
		if !ok {
			e.Fatal("the watch is closed")
		}
		l, _ := ev.Object.(*coordinationv1.Lease)
		return ev, l
	case <-time.After(30 * time.Second):
		e.Fatal("no event in 30s")
	}
	panic("unreachable")
}

// want checks that the next event is of that type and carries exactly that lease.
func (e events) want(typ watch.EventType, lease *coordinationv1.Lease) {
	e.Helper()
	ev, l := e.next()
	if ev.Type != typ || l == nil {
		e.Fatalf("got %s %s, want %s %s", ev.Type, show(ev.Object), typ, lease.Name)
	}
	e.session.want(string(typ), l, lease)
}

// wantClosed checks that no event follows.
func (e events) wantClosed() {
	e.Helper()
	select {
	case ev, ok := <-e.ResultChan():
		if ok {
			e.Errorf("got %s %s, want the watch closed", ev.Type, show(ev.Object))
		}
	case <-time.After(30 * time.Second):
		e.Error("the watch is still open after 30s")
	}
}

// wantEnd checks that the watch ends, possibly after an ERROR event that client-go adds.
func (e events) wantEnd() {
	e.Helper()
	for {
		select {
		case ev, ok := <-e.ResultChan():
			if !ok {
				return
			}
			if ev.Type != watch.Error {
				e.Errorf("got %s %s, want the watch closed", ev.Type, show(ev.Object))
			}
		case <-time.After(30 * time.Second):
			e.Fatal("the watch is still open after 30s")
		}
	}
}
