package annotation

import (
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestRead(t *testing.T) {
	began := time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)
	term := FormatTerm(began)
	type notes = map[string]string
	standby := func(after time.Duration, identity string) string {
		return FormatStandby(began.Add(after), Candidate{identity, 7})
	}
	for _, tt := range []struct {
		name        string
		holder      string
		annotations notes
		want        Notes
	}{
		{"none", "a", notes{"other": "x"}, Notes{}},
		{"the holder's", "a", notes{Term: term, Address: "a:80", Priority: "-3"},
			Notes{Address: "a:80", Priority: -3, Prioritized: true}},
		{"the holder's, of another term", "a",
			notes{Term: FormatTerm(began.Add(1000)), Address: "a:80", Priority: "3"}, Notes{}},
		{"the holder's, without a term", "a", notes{Address: "a:80", Priority: "3"}, Notes{}},
		{"a standby with spaces in its identity", "a", notes{Standby: standby(0, "b c")},
			Notes{Standby: Candidate{"b c", 7}}},
		{"a standby of another term", "a", notes{Standby: standby(1000, "b")}, Notes{}},
		{"a standby without an identity", "a", notes{Standby: term + " 7 "}, Notes{}},
		{"a standby whose priority is no number", "a", notes{Standby: term + " best b"}, Notes{}},
		{"a standby whose priority is too large", "a", notes{Standby: term + " 99999999999999999999 b"}, Notes{}},
		{"a standby with a long identity", "a", notes{Standby: standby(0, strings.Repeat("x", MaxLength+1))}, Notes{}},
		{"asked to hand over", "a", notes{HandOver: FormatHandOver(began, "")}, Notes{Asked: true}},
		{"asked to hand over to b", "a", notes{HandOver: FormatHandOver(began, "b")},
			Notes{Asked: true, AskedTo: "b"}},
		{"asked in another term", "a", notes{HandOver: FormatHandOver(began.Add(1000), "b")}, Notes{}},
		{"a successor of a lease that is held", "a", notes{Successor: FormatSuccessor(4, "b")}, Notes{}},
		{"a successor", "", notes{Successor: FormatSuccessor(4, "b")}, Notes{Successor: "b"}},
		{"a successor after another term", "", notes{Successor: FormatSuccessor(3, "b")}, Notes{}},
		{"free, with what was the holder's", "", notes{Term: term, Address: "a:80", Standby: standby(0, "b")}, Notes{}},
		{"empty", "a", notes{Term: "", Address: "", Priority: "", Standby: "", HandOver: "", Successor: ""}, Notes{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Read(&coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{Annotations: tt.annotations},
				Spec: coordinationv1.LeaseSpec{
					HolderIdentity: &tt.holder, LeaseTransitions: new(int32(4)),
					AcquireTime: &metav1.MicroTime{Time: began},
				},
			})
			removal := got.Removal()
			for key := range tt.annotations {
				if _, ok := removal[key]; !ok && key != "other" {
					t.Errorf("a release does not remove %s", key)
				}
			}
			if got.present = 0; got != tt.want {
				t.Errorf("read %+v, want %+v", got, tt.want)
			}
		})
	}
	for _, spec := range []coordinationv1.LeaseSpec{{}, {HolderIdentity: new("a")}} {
		got := Read(&coordinationv1.Lease{Spec: spec, ObjectMeta: metav1.ObjectMeta{Annotations: notes{
			Term: FormatTerm(time.Time{}), Address: "x", Successor: "0 b",
			Standby: FormatStandby(time.Time{}, Candidate{"b", 1}),
		}}})
		if got.present = 0; got != (Notes{}) {
			t.Errorf("of a Lease without times: %+v", got)
		}
	}
}
