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
		what = fmt.Sprintf(`{"spec":%s}`, h.spec(true))
		if live == nil {
			return
		}
		d, err := mergePatch(live, []byte(what), "")
		if err != nil {
			h.Fatal(err)
		}
		want = own(live, d.lease, manager)
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

func text(l *coordinationv1.Lease) string {
	b, err := json.Marshal(struct {
		Spec   coordinationv1.LeaseSpec
		Owners []metav1.ManagedFieldsEntry
	}{l.Spec, l.ManagedFields})
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
		`{"metadata":{"labels":{"a":"1"},"finalizers":["x/y"],"managedFields":[{}]}}`, `null`, `[]`, `{"spec":{"a":1}}`,
		`{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"x"},"spec":{"holderIdentity":"a"}}`,
		`{"metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z"}}`,
		`{"metadata":{"ownerReferences":[{"uid":"a"},{"uid":"a"}]}}`,
	} {
		f.Add(body)
	}
	live := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "x", UID: "u",
		ResourceVersion: "1001"}}
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
		p, ok := parseSpecPatch([]byte(body))
		if !ok {
			return
		}
		short := live.DeepCopy()
		p.conditions(short)
		p.apply(&short.Spec, p.set, p.null)
		doc, err := json.Marshal(withKind(live))
		if err != nil {
			t.Fatal(err)
		}
		long, err := decode(merge(doc, []byte(body)), "")
		if err != nil {
			t.Fatalf("%q passes the short way, but not the long: %v", body, err)
		}
		if a, b := text(short), text(long); a != b || short.ResourceVersion != long.ResourceVersion ||
			short.UID != long.UID {
			t.Errorf("%q: the short way\n%s\nthe long way\n%s", body, a, b)
		}
	})
}
