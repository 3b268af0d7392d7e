package conformance

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	coordinationv1apply "k8s.io/client-go/applyconfigurations/coordination/v1"
)

var applyCases = []Case{
	{"apply of a missing lease creates it", func(s *session) {
		l := s.must(s.Apply(s.ctx,
			coordinationv1apply.Lease(name, s.namespace).WithSpec(coordinationv1apply.LeaseSpec().
				WithHolderIdentity("a").WithLeaseDurationSeconds(15).WithAcquireTime(*at(0)).
				WithRenewTime(*at(0)).WithLeaseTransitions(1)),
			metav1.ApplyOptions{FieldManager: "a", Force: true}))
		s.wantSpec(l, heldSpec)
		s.wantOwners(l, "a Apply: "+allFields)
		s.wantSame(l, s.get())
	}},
	{"apply of a missing lease creates it even with a resourceVersion", func(s *session) {
		l := s.must(s.apply("a", true,
			`"metadata":{"name":"lease","resourceVersion":"1"},"spec":{"holderIdentity":"a"}`))
		s.wantOwners(l, "a Apply: holderIdentity")
	}},
	{"apply of a missing lease with a uid is a conflict", func(s *session) {
		_, err := s.apply("a", true,
			`"metadata":{"name":"lease","uid":"u","resourceVersion":"1"},"spec":{"holderIdentity":"a"}`)
		s.wantError(err, 409, metav1.StatusReasonConflict,
			"uid mismatch: the provided object specified uid u, and no existing object was found")
	}},
	{"apply with a stale resourceVersion is a conflict", func(s *session) {
		a := s.held()
		b := s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`))
		_, err := s.apply("a", true, `"metadata":{"name":"lease","resourceVersion":%q},"spec":{"holderIdentity":"c"}`,
			a.ResourceVersion)
		s.wantStale(err)
		s.wantSame(b, s.get())
	}},
	{"apply with the right resourceVersion and uid", func(s *session) {
		a := s.held()
		b := s.must(s.apply("a", true,
			`"metadata":{"name":"lease","uid":%q,"resourceVersion":%q},"spec":{"holderIdentity":"c"}`, a.UID,
			a.ResourceVersion))
		s.wantNewer(a, b)
		s.want("holder", b.Spec.HolderIdentity, "c")
		s.wantOwners(b, "a Apply: holderIdentity",
			manager+" Update: acquireTime leaseDurationSeconds leaseTransitions renewTime")
	}},
	{"apply with another uid is invalid", func(s *session) {
		s.held()
		_, err := s.apply("a", true, `"metadata":{"name":"lease","uid":"other"},"spec":{"holderIdentity":"c"}`)
		s.wantError(err, 422, metav1.StatusReasonInvalid, `metadata.uid: Invalid value: "other": field is immutable`)
	}},
	{"apply with another uid and a stale resourceVersion is a conflict", func(s *session) {
		s.held()
		_, err := s.apply("a", true,
			`"metadata":{"name":"lease","uid":"other","resourceVersion":"1"},"spec":{"holderIdentity":"c"}`)
		s.wantError(err, 409, metav1.StatusReasonConflict)
	}},
	{"apply with resourceVersion 0 is invalid", func(s *session) {
		s.held()
		_, err := s.apply("a", true, `"metadata":{"name":"lease","resourceVersion":"0"},"spec":{"holderIdentity":"c"}`)
		s.wantError(err, 422, metav1.StatusReasonInvalid, "must be specified for an update")
	}},
	{"apply with a resourceVersion that is no number is a 500", func(s *session) {
		s.held()
		_, err := s.apply("a", true, `"metadata":{"name":"lease","resourceVersion":"x"},"spec":{"holderIdentity":"c"}`)
		s.wantError(err, 500, "", "invalid syntax")
	}},
	{"apply of nothing but a name owns nothing", func(s *session) {
		a := s.must(s.apply("a", false, `"metadata":{"name":"lease"},"spec":{"holderIdentity":"a"}`))
		b := s.must(s.apply("b", false, `"metadata":{"name":"lease"}`))
		s.wantSpec(b, `{"holderIdentity":"a"}`)
		s.wantOwners(b, "a Apply: holderIdentity")
		s.wantSame(a, b)
		c := s.must(s.apply("a", false, `"metadata":{"name":"lease"}`))
		s.wantSpec(c, `{}`)
		s.wantOwners(c)
	}},
	{"apply of a time in another form", func(s *session) {
		s.must(s.apply("a", false, `"metadata":{"name":"lease"},"spec":`+heldSpec))
		b := s.must(s.apply("b", false, `"metadata":{"name":"lease"},"spec":{"leaseTransitions":1}`))
		_, err := s.apply("b", false,
			`"metadata":{"name":"lease"},"spec":{"renewTime":"2026-01-02T05:04:05.123456+02:00"}`)
		s.wantError(err, 409, metav1.StatusReasonConflict, "Apply failed with 1 conflict")
		s.wantSame(b, s.get())
	}},
	{"apply without force conflicts with the owner of a field", func(s *session) {
		a := s.held()
		_, err := s.apply("b", false, `"metadata":{"name":"lease"},"spec":{"holderIdentity":"b"}`)
		s.wantError(err, 409, metav1.StatusReasonConflict,
			`Apply failed with 1 conflict: conflict with "conformance" using coordination.k8s.io/v1`,
			".spec.holderIdentity")
		s.wantCause(err, metav1.CauseTypeFieldManagerConflict, ".spec.holderIdentity")
		s.wantSame(a, s.get())
	}},
	{"apply without force names the conflict of another apply", func(s *session) {
		s.must(s.apply("a", false, `"metadata":{"name":"lease"},"spec":{"holderIdentity":"a","leaseTransitions":1}`))
		_, err := s.apply("b", false, `"metadata":{"name":"lease"},"spec":{"holderIdentity":"b","leaseTransitions":2}`)
		s.wantError(err, 409, metav1.StatusReasonConflict, `Apply failed with 2 conflicts: conflicts with "a":`,
			"- .spec.holderIdentity", "- .spec.leaseTransitions")
	}},
	{"apply without force and a stale resourceVersion reports the owner", func(s *session) {
		a := s.held()
		s.must(s.merge(`{"spec":{"leaseTransitions":2}}`))
		_, err := s.apply("b", false, `"metadata":{"name":"lease","resourceVersion":%q},"spec":{"holderIdentity":"b"}`,
			a.ResourceVersion)
		s.wantError(err, 409, metav1.StatusReasonConflict, "Apply failed with 1 conflict")
	}},
	{"apply of the same value shares the field", func(s *session) {
		a := s.held()
		b := s.must(s.apply("b", false, `"metadata":{"name":"lease"},"spec":{"holderIdentity":"a"}`))
		s.wantNewer(a, b)
		s.wantSpec(b, heldSpec)
		s.wantOwners(b, "b Apply: holderIdentity", manager+" Update: "+allFields)
		for _, e := range b.ManagedFields {
			if e.Operation == metav1.ManagedFieldsOperationApply && e.Time != nil {
				s.Errorf("got time %v, want none for a manager that has changed nothing", e.Time)
			}
		}
		s.wantSame(b, s.must(s.apply("b", false, `"metadata":{"name":"lease"},"spec":{"holderIdentity":"a"}`)))
	}},
	{"apply with force takes the field", func(s *session) {
		s.must(s.apply("a", false, `"metadata":{"name":"lease"},"spec":{"holderIdentity":"a","leaseTransitions":1}`))
		b := s.must(s.apply("b", true, `"metadata":{"name":"lease"},"spec":{"holderIdentity":"b"}`))
		s.wantOwners(b, "a Apply: leaseTransitions", "b Apply: holderIdentity")
		c := s.must(s.apply("c", true,
			`"metadata":{"name":"lease"},"spec":{"holderIdentity":"c","leaseTransitions":3}`))
		s.wantOwners(c, "c Apply: holderIdentity leaseTransitions")
	}},
	{"apply that omits its own field removes it", func(s *session) {
		s.must(s.apply("a", false, `"metadata":{"name":"lease"},"spec":{"holderIdentity":"a","leaseTransitions":1}`))
		b := s.must(s.apply("a", false, `"metadata":{"name":"lease"},"spec":{"leaseTransitions":1}`))
		s.wantSpec(b, `{"leaseTransitions":1}`)
		s.wantOwners(b, "a Apply: leaseTransitions")
	}},
	{"apply that omits a field which another owns too leaves it", func(s *session) {
		s.must(s.apply("a", false, `"metadata":{"name":"lease"},"spec":{"holderIdentity":"a","leaseTransitions":1}`))
		s.must(s.apply("b", false, `"metadata":{"name":"lease"},"spec":{"holderIdentity":"a"}`))
		b := s.must(s.apply("a", false, `"metadata":{"name":"lease"},"spec":{"leaseTransitions":1}`))
		s.wantSpec(b, `{"holderIdentity":"a","leaseTransitions":1}`)
		s.wantOwners(b, "a Apply: leaseTransitions", "b Apply: holderIdentity")
	}},
	{"apply that omits a field which its own update owns leaves it", func(s *session) {
		s.must(s.apply(manager, false,
			`"metadata":{"name":"lease"},"spec":{"holderIdentity":"a","leaseTransitions":1}`))
		b := s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`))
		s.wantOwners(b, manager+" Apply: leaseTransitions", manager+" Update: holderIdentity")
		c := s.must(s.apply(manager, false, `"metadata":{"name":"lease"},"spec":{"leaseTransitions":2}`))
		s.wantSpec(c, `{"holderIdentity":"b","leaseTransitions":2}`)
	}},
	{"acquire by apply, renew and release by patch, acquire by another", func(s *session) {
		a := s.must(s.apply(manager, true, `"metadata":{"name":"lease"},"spec":`+heldSpec))
		b := s.must(s.merge(`{"metadata":{"resourceVersion":%q},"spec":{"renewTime":"2026-01-02T03:04:08.000000Z"}}`,
			a.ResourceVersion))
		s.wantOwners(b, manager+" Apply: acquireTime holderIdentity leaseDurationSeconds leaseTransitions",
			manager+" Update: renewTime")
		c := s.must(s.merge(`{"metadata":{"resourceVersion":%q},"spec":{"holderIdentity":null,"acquireTime":null,`+
			`"renewTime":null,"leaseDurationSeconds":null}}`, b.ResourceVersion))
		s.wantSpec(c, `{"leaseTransitions":1}`)
		s.wantOwners(c, manager+" Apply: leaseTransitions")
		d := s.must(s.apply("other", true, `"metadata":{"name":"lease","resourceVersion":%q},"spec":%s`,
			c.ResourceVersion, heldSpec))
		s.wantSpec(d, heldSpec)
		s.wantOwners(d, manager+" Apply: leaseTransitions", "other Apply: "+allFields)
	}},
	{"apply without a change writes nothing", func(s *session) {
		a := s.must(s.apply("a", false, `"metadata":{"name":"lease"},"spec":`+heldSpec))
		s.wantSame(a, s.must(s.apply("a", false, `"metadata":{"name":"lease"},"spec":`+heldSpec)))
		s.wantSame(a, s.must(s.apply("a", true, `"metadata":{"name":"lease","resourceVersion":%q},"spec":`+heldSpec,
			a.ResourceVersion)))
		s.wantSame(a, s.get())
	}},
	{"apply without a change and a stale resourceVersion is a conflict", func(s *session) {
		a := s.must(s.apply("a", false, `"metadata":{"name":"lease"},"spec":{"holderIdentity":"a"}`))
		s.must(s.merge(`{"spec":{"leaseTransitions":2}}`))
		_, err := s.apply("a", true, `"metadata":{"name":"lease","resourceVersion":%q},"spec":{"holderIdentity":"a"}`,
			a.ResourceVersion)
		s.wantStale(err)
	}},
	{"apply keeps the metadata of others", func(s *session) {
		in := held()
		in.Labels = map[string]string{"a": "1"}
		in.Annotations = map[string]string{"b": "2"}
		in.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: "u"}}
		a := s.must(s.Create(s.ctx, in, create))
		b := s.must(s.apply("a", true, `"metadata":{"name":"lease"},"spec":{"holderIdentity":"b"}`))
		s.want("labels", b.Labels, a.Labels)
		s.want("annotations", b.Annotations, a.Annotations)
		s.want("owners", b.OwnerReferences, a.OwnerReferences)
	}},
	{"apply owns labels one by one", func(s *session) {
		s.must(s.apply("a", false,
			`"metadata":{"name":"lease","labels":{"a":"1","b":"2"}},"spec":{"holderIdentity":"a"}`))
		s.must(s.merge(`{"metadata":{"labels":{"c":"3"}}}`))
		b := s.must(s.apply("a", false, `"metadata":{"name":"lease","labels":{"b":"2"}},"spec":{"holderIdentity":"a"}`))
		s.want("labels", b.Labels, map[string]string{"b": "2", "c": "3"})
		s.wantOwners(b, "a Apply: holderIdentity labels.b", manager+" Update: labels.c")
	}},
	{"apply of owner references", func(s *session) {
		b := s.must(s.apply("a", false,
			`"metadata":{"name":"lease","ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"p","uid":"u"}]},`+
				`"spec":{"holderIdentity":"a"}`))
		s.want("owners", b.OwnerReferences,
			[]metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: "u"}})
		s.wantOwners(b, `a Apply: holderIdentity ownerReferences.k:{"uid":"u"}`)
	}},
	{"apply with null", func(s *session) {
		s.must(s.apply("a", false, `"metadata":{"name":"lease"},"spec":{"holderIdentity":"a","leaseTransitions":1}`))
		b := s.must(s.apply("a", false,
			`"metadata":{"name":"lease"},"spec":{"holderIdentity":null,"leaseTransitions":1}`))
		s.wantSpec(b, `{"leaseTransitions":1}`)
	}},
	{"apply needs a field manager", func(s *session) {
		_, err := s.apply("", true, `"metadata":{"name":"lease"},"spec":{"holderIdentity":"a"}`)
		s.wantError(err, 422, metav1.StatusReasonInvalid, "fieldManager: Required value: is required for apply patch")
	}},
	{"apply may not carry managedFields", func(s *session) {
		_, err := s.apply("a", true,
			`"metadata":{"name":"lease","managedFields":[{"manager":"x"}]},"spec":{"holderIdentity":"a"}`)
		s.wantError(err, 400, metav1.StatusReasonBadRequest, "metadata.managedFields must be nil")
	}},
	{"apply of another name is a bad request", func(s *session) {
		_, err := s.apply("a", true, `"metadata":{"name":"other"},"spec":{"holderIdentity":"a"}`)
		s.wantError(err, 400, metav1.StatusReasonBadRequest,
			"the name of the object (other) does not match the name on the URL (lease)")
		_, err = s.apply("a", true, `"metadata":{"name":"lease","namespace":"other"},"spec":{"holderIdentity":"a"}`)
		s.wantError(err, 400, metav1.StatusReasonBadRequest, "namespace")
	}},
	{"apply of an unknown field is an error", func(s *session) {
		_, err := s.apply("a", true, `"metadata":{"name":"lease"},"spec":{"color":"red"}`)
		s.wantError(err, 500, "", "field not declared in schema")
	}},
	{"apply of the wrong type is an error", func(s *session) {
		s.held()
		_, err := s.apply("a", true, `"metadata":{"name":"lease"},"spec":{"leaseDurationSeconds":"15"}`)
		s.wantError(err, 500, "", "leaseDurationSeconds")
	}},
	{"apply of another version is a bad request", func(s *session) {
		_, err := s.Patch(s.ctx, name, types.ApplyYAMLPatchType,
			[]byte(`{"apiVersion":"coordination.k8s.io/v1beta1","kind":"Lease","metadata":{"name":"lease"}}`),
			metav1.PatchOptions{FieldManager: "a"})
		s.wantError(err, 400, metav1.StatusReasonBadRequest,
			"invalid object type: coordination.k8s.io/v1beta1, Kind=Lease")
	}},
	{"apply of YAML", func(s *session) {
		l := s.must(s.Patch(s.ctx, name, types.ApplyYAMLPatchType,
			[]byte("apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata:\n  name: lease\n"+
				"spec:\n  holderIdentity: a\n"),
			metav1.PatchOptions{FieldManager: "a"}))
		s.wantSpec(l, `{"holderIdentity":"a"}`)
	}},
	{"apply of no object is a bad request", func(s *session) {
		for _, body := range []string{`{`, `1`, `[]`} {
			_, err := s.Patch(s.ctx, name, types.ApplyYAMLPatchType, []byte(body),
				metav1.PatchOptions{FieldManager: "a"})
			s.wantError(err, 400, metav1.StatusReasonBadRequest)
		}
	}},
	{"apply is validated", func(s *session) {
		s.held()
		_, err := s.apply("a", true, `"metadata":{"name":"lease"},"spec":{"leaseDurationSeconds":0}`)
		s.wantError(err, 422, metav1.StatusReasonInvalid, "must be greater than 0")
	}},
	{"apply to a lease without owners", func(s *session) {
		s.held()
		s.wantOwners(s.must(s.merge(`{"metadata":{"managedFields":[{}]}}`)))
		l := s.must(s.apply("a", true, `"metadata":{"name":"lease"},"spec":{"holderIdentity":"b"}`))
		s.wantOwners(l, "a Apply: holderIdentity",
			"before-first-apply Update: acquireTime leaseDurationSeconds leaseTransitions renewTime")
	}},
}

// wantCause checks the first cause of a status error.
func (s *session) wantCause(err error, typ metav1.CauseType, fieldName string) {
	s.Helper()
	causes := statusOf(err).Details.Causes
	if len(causes) == 0 || causes[0].Type != typ || causes[0].Field != fieldName {
		s.Errorf("got causes %s, want %s of %s", show(causes), typ, fieldName)
	}
}
