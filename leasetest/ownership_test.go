package leasetest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestOwnersAgreeWithTheServersMachinery compares the arithmetic of owners with package managedfields over random
// histories of one lease.
func TestOwnersAgreeWithTheServersMachinery(t *testing.T) {
	steps := 0
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			h := &history{T: t, Rand: rand.New(rand.NewPCG(seed, 0)), srv: NewServer()}
			for range 100 {
				h.step()
				time.Sleep(time.Duration(h.IntN(2500)) * time.Millisecond)
			}
			steps += h.compared
			if t.Failed() {
				t.Logf("seed %d", seed)
			}
		})
	}
	if steps < 1000 {
		t.Errorf("only %d steps compared", steps)
	}
}

type history struct {
	*testing.T
	*rand.Rand
	srv      *Server
	compared int
}

func (h *history) spec(nulls bool) string {
	values := map[string][]string{
		"acquireTime":          {`"2026-01-01T00:00:00.000000Z"`, `"2026-01-02T00:00:00.000000Z"`},
		"holderIdentity":       {`"a"`, `"b"`, `""`},
		"leaseDurationSeconds": {`15`, `30`},
		"leaseTransitions":     {`1`, `2`},
		"renewTime":            {`"2026-01-01T00:00:00.000000Z"`, `"2026-01-02T00:00:00.000000Z"`},
	}
	var members []string
	for _, name := range specFieldNames {
		switch v := values[name]; {
		case h.IntN(2) == 0:
		case nulls && h.IntN(4) == 0:
			members = append(members, fmt.Sprintf("%q:null", name))
		default:
			members = append(members, fmt.Sprintf("%q:%s", name, v[h.IntN(len(v))]))
		}
	}
	return "{" + strings.Join(members, ",") + "}"
}

// metadata returns labels and annotations for a merge patch.
func (h *history) metadata() string {
	var maps []string
	for _, field := range []string{"labels", "annotations"} {
		var members []string
		for _, key := range []string{"x", "example.com/y"} {
			if h.IntN(2) == 0 {
				members = append(members, fmt.Sprintf("%q:%s", key, []string{`"1"`, `"2"`, `"3"`, "null"}[h.IntN(4)]))
			}
		}
		if h.IntN(2) == 0 {
			maps = append(maps, fmt.Sprintf("%q:{%s}", field, strings.Join(members, ",")))
		}
	}
	return "{" + strings.Join(maps, ",") + "}"
}

func (h *history) step() {
	live := h.srv.Lease("ns", "x")
	manager := []string{"a", "b", "c"}[h.IntN(3)]
	leases := h.srv.Client("client").Leases("ns")
	force := h.IntN(3) > 0
	var want, got *coordinationv1.Lease
	var wantErr, gotErr error
	what := ""
	switch h.IntN(3) {
	case 0:
		what = fmt.Sprintf(`{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"x"},"spec":%s}`,
			h.spec(false))
		if live == nil {
			live = &coordinationv1.Lease{}
		}
		var applied map[string]any
		if err := json.Unmarshal([]byte(what), &applied); err != nil {
			h.Fatal(err)
		}
		want, wantErr = ownApplied(live, applied, manager, force)
		got, gotErr = leases.Patch(h.Context(), "x", types.ApplyYAMLPatchType, []byte(what),
			metav1.PatchOptions{FieldManager: manager, Force: &force})
	case 1:
		what = fmt.Sprintf(`{"metadata":%s,"spec":%s}`, h.metadata(), h.spec(true))
		if live == nil {
			return
		}
		want = own(live, mergedTheLongWay(h.T, live, what), manager)
		got, gotErr = leases.Patch(h.Context(), "x", types.MergePatchType, []byte(what),
			metav1.PatchOptions{FieldManager: manager})
	case 2:
		in := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "x"}}
		what = h.spec(false)
		if err := json.Unmarshal([]byte(what), &in.Spec); err != nil {
			h.Fatal(err)
		}
		if live == nil {
			live = &coordinationv1.Lease{}
		}
		in.ResourceVersion = live.ResourceVersion
		want = own(live, in, manager)
		got, gotErr = leases.Update(h.Context(), in, metav1.UpdateOptions{FieldManager: manager})
	}
	h.compared++
	if fmt.Sprint(wantErr) != fmt.Sprint(gotErr) {
		h.Fatalf("%s of %s: got %v, want %v", manager, what, gotErr, wantErr)
	}
	if gotErr != nil {
		return
	}
	if sameLease(live, got) {
		want.ManagedFields = got.ManagedFields // but for times, which are not moved by a write without a change
		if live.ResourceVersion != got.ResourceVersion {
			h.Errorf("%s of %s: written without a change", manager, what)
		}
	}
	if g, w := text(got), text(want); g != w {
		h.Fatalf("%s of %s\non  %s\ngot  %s\nwant %s", manager, what, text(live), g, w)
	}
}

// mergedTheLongWay returns the lease with a merge patch, by JSON of the whole lease.
func mergedTheLongWay(t *testing.T, live *coordinationv1.Lease, patch string) *coordinationv1.Lease {
	t.Helper()
	doc, err := json.Marshal(withKind(live))
	if err != nil {
		t.Fatal(err)
	}
	lease, err := decode(merge(doc, []byte(patch)), "")
	if err != nil {
		t.Fatalf("%s: %v", patch, err)
	}
	return lease
}

func text(l *coordinationv1.Lease) string {
	b, err := json.Marshal(struct {
		Labels, Annotations map[string]string
		Spec                coordinationv1.LeaseSpec
		Owners              []metav1.ManagedFieldsEntry
	}{l.Labels, l.Annotations, l.Spec, l.ManagedFields})
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// FuzzPatch looks for patches that panic, or that the short way and the long way take differently.
func FuzzPatch(f *testing.F) {
	for _, body := range []string{
		`{"metadata":{"resourceVersion":"1001"},"spec":{"renewTime":"2026-01-01T00:00:00.000000Z"}}`,
		`{"spec":{"holderIdentity":null,"leaseDurationSeconds":15,"leaseTransitions":1}}`, `{"spec":null}`,
		`{"metadata":null}`,
		`{"metadata":{"labels":{"a":null,"b":"1"},"annotations":{"a":"1","b":null}}}`,
		`{"metadata":{"labels":{"a":"1"},"finalizers":["x/y"],"managedFields":[{}]}}`, `null`, `[]`, `{"spec":{"a":1}}`,
		`{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"x"},"spec":{"holderIdentity":"a"}}`,
		`{"metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z"}}`,
		`{"metadata":{"ownerReferences":[{"uid":"a"},{"uid":"a"}]}}`,
	} {
		f.Add(body)
	}
	live := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "x", UID: "u",
		ResourceVersion: "1001"}}
	live.Labels, live.Annotations = map[string]string{"a": "0"}, map[string]string{"a": "0", "b": "0"}
	if err := json.Unmarshal([]byte(`{"holderIdentity":"z","leaseTransitions":7}`), &live.Spec); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body string) {
		for _, pt := range []types.PatchType{types.MergePatchType, types.StrategicMergePatchType,
			types.ApplyYAMLPatchType} {
			srv := NewServer()
			srv.Put(live)
			l, err := srv.Client("c").Leases("ns").Patch(t.Context(), "x", pt, []byte(body),
				metav1.PatchOptions{FieldManager: "m"})
			if err == nil && l.Name != "x" {
				t.Errorf("%s of %q: returned %v", pt, body, l)
			}
		}
		p, ok := parsePlainPatch([]byte(body))
		if !ok {
			return
		}
		short := p.merge(live).lease
		long := mergedTheLongWay(t, live, body)
		if a, b := text(short), text(long); a != b || short.ResourceVersion != long.ResourceVersion ||
			short.UID != long.UID {
			t.Errorf("%q: the short way\n%s\nthe long way\n%s", body, a, b)
		}
	})
}
