package conformance

import (
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var createCases = []Case{
	{"create gives uid, resourceVersion, creation time and owners", func(s *session) {
		l := s.held()
		s.wantSpec(l, heldSpec)
		if l.UID == "" || s.rv(l) == 0 || l.CreationTimestamp.IsZero() || l.Namespace != s.namespace {
			s.Errorf("incomplete metadata: %s", show(l.ObjectMeta))
		}
		s.wantOwners(l, manager+" Update: "+allFields)
		s.wantSame(l, s.get())
	}},
	{"create of an existing lease is AlreadyExists", func(s *session) {
		l := s.held()
		_, err := s.Create(s.ctx, held(), create)
		s.wantError(err, 409, metav1.StatusReasonAlreadyExists, `leases.coordination.k8s.io "lease" already exists`)
		s.wantSame(l, s.get())
	}},
	{"create ignores a uid", func(s *session) {
		in := held()
		in.UID = "mine"
		if l := s.must(s.Create(s.ctx, in, create)); l.UID == "mine" {
			s.Error("the uid was kept")
		}
	}},
	{"create with a resourceVersion is a 500", func(s *session) {
		in := held()
		in.ResourceVersion = "1"
		_, err := s.Create(s.ctx, in, create)
		s.wantError(err, 500, "", "resourceVersion should not be set on objects to be created")
	}},
	{"create for another namespace is a bad request", func(s *session) {
		in := held()
		in.Namespace = "other"
		_, err := s.Create(s.ctx, in, create)
		s.wantError(err, 400, metav1.StatusReasonBadRequest,
			"the namespace of the provided object does not match the namespace sent on the request")
	}},
	{"create with an empty spec leaves fields without owners for good", func(s *session) {
		l := s.must(s.Create(s.ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}}, create))
		s.wantOwners(l)
		s.wantOwners(s.must(s.merge(`{"spec":{"holderIdentity":"a"}}`)))
	}},
	{"create as a dry run stores nothing", func(s *session) {
		l := s.must(s.Create(s.ctx, held(), metav1.CreateOptions{DryRun: []string{"All"}}))
		s.wantSpec(l, heldSpec)
		_, err := s.Get(s.ctx, name, metav1.GetOptions{})
		s.wantError(err, 404, metav1.StatusReasonNotFound)
	}},
	{"created again it has a new uid and a greater resourceVersion", func(s *session) {
		a := s.held()
		if err := s.Delete(s.ctx, name, metav1.DeleteOptions{}); err != nil {
			s.Fatal(err)
		}
		b := s.held()
		s.wantNewer(a, b)
		if a.UID == b.UID {
			s.Error("the uid is the same")
		}
	}},
	{"times are kept to the microsecond", func(s *session) {
		in := held()
		in.Spec.RenewTime = &metav1.MicroTime{Time: instant.Add(789 * time.Nanosecond)}
		l := s.must(s.Create(s.ctx, in, create))
		if !l.Spec.RenewTime.Time.Equal(instant) {
			s.Errorf("got %v, want %v", l.Spec.RenewTime, instant)
		}
	}},
	{"odd content is kept", func(s *session) {
		in := held()
		in.Spec.HolderIdentity = ptr("")
		in.Spec.LeaseDurationSeconds = ptr(int32(1<<31 - 1))
		in.Spec.LeaseTransitions = ptr(int32(1<<31 - 1))
		in.Spec.RenewTime = &metav1.MicroTime{Time: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)}
		in.Spec.AcquireTime = &metav1.MicroTime{Time: time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC)}
		s.Create(s.ctx, in, create)
		s.wantSpec(s.get(), `{"holderIdentity":"","leaseDurationSeconds":2147483647,"leaseTransitions":2147483647,
			"renewTime":"9999-12-31T23:59:59.000000Z","acquireTime":"0001-01-01T00:00:01.000000Z"}`)
	}},
	{"strategy and preferredHolder are dropped in silence", func(s *session) {
		in := held()
		in.Spec.PreferredHolder = ptr("b")
		in.Spec.Strategy = ptr(coordinationv1.OldestEmulationVersion)
		s.wantSpec(s.must(s.Create(s.ctx, in, create)), heldSpec)
		s.wantSpec(s.must(s.merge(`{"spec":{"preferredHolder":"b","strategy":"nonsense"}}`)), heldSpec)
	}},
}

var updateCases = []Case{
	{"update", func(s *session) {
		a := s.held()
		in := a.DeepCopy()
		in.Spec.RenewTime = at(time.Second)
		in.Spec.HolderIdentity = nil
		b := s.must(s.Update(s.ctx, in, metav1.UpdateOptions{FieldManager: "other"}))
		s.wantNewer(a, b)
		s.want("spec", b.Spec, in.Spec)
		s.want("creation", b.CreationTimestamp, a.CreationTimestamp)
		s.wantOwners(b, manager+" Update: acquireTime leaseDurationSeconds leaseTransitions", "other Update: renewTime")
	}},
	{"update without a change writes nothing", func(s *session) {
		a := s.held()
		s.wantSame(a, s.must(s.Update(s.ctx, a, metav1.UpdateOptions{FieldManager: "other"})))
		in := a.DeepCopy()
		in.ManagedFields = nil
		s.wantSame(a, s.must(s.Update(s.ctx, in, metav1.UpdateOptions{FieldManager: "other"})))
		s.wantSame(a, s.get())
	}},
	{"update with a stale resourceVersion is a conflict", func(s *session) {
		a := s.held()
		b := s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`))
		_, err := s.Update(s.ctx, a, update)
		s.wantStale(err)
		s.wantSame(b, s.get())
	}},
	{"update with a resourceVersion of the future is a conflict", func(s *session) {
		a := s.held()
		a.ResourceVersion = "999999999"
		_, err := s.Update(s.ctx, a, update)
		s.wantStale(err)
	}},
	{"update without a resourceVersion is invalid", func(s *session) {
		s.held()
		_, err := s.Update(s.ctx, held(), update)
		s.wantError(err, 422, metav1.StatusReasonInvalid, `leases.coordination.k8s.io "lease" is invalid`,
			"metadata.resourceVersion: Invalid value: 0: must be specified for an update")
	}},
	{"update with a resourceVersion that is no number is a 500", func(s *session) {
		a := s.held()
		a.ResourceVersion = "x"
		_, err := s.Update(s.ctx, a, update)
		s.wantError(err, 500, "", "invalid syntax")
	}},
	{"update with another uid is a conflict", func(s *session) {
		a := s.held()
		a.UID = "other"
		_, err := s.Update(s.ctx, a, update)
		s.wantError(err, 409, metav1.StatusReasonConflict,
			"Precondition failed: UID in precondition: other, UID in object meta: ")
	}},
	{"update without a uid succeeds", func(s *session) {
		a := s.held()
		a.UID = ""
		a.Spec.HolderIdentity = ptr("b")
		s.must(s.Update(s.ctx, a, update))
	}},
	{"update of a missing lease creates it", func(s *session) {
		l := s.must(s.Update(s.ctx, held(), update))
		s.wantSpec(l, heldSpec)
		s.wantOwners(l, manager+" Update: "+allFields)
	}},
	{"update of a missing lease with a resourceVersion creates it too", func(s *session) {
		in := held()
		in.ResourceVersion = "1"
		l := s.must(s.Update(s.ctx, in, update))
		if s.rv(l) <= 1 {
			s.Errorf("got resourceVersion %s", l.ResourceVersion)
		}
	}},
	{"update of a missing lease with a uid is a conflict", func(s *session) {
		a := s.held()
		if err := s.Delete(s.ctx, name, metav1.DeleteOptions{}); err != nil {
			s.Fatal(err)
		}
		_, err := s.Update(s.ctx, a, update)
		s.wantError(err, 409, metav1.StatusReasonConflict,
			"Precondition failed: UID in precondition: "+string(a.UID)+", UID in object meta: ")
	}},
	{"update replaces labels, annotations and owners", func(s *session) {
		in := held()
		in.Labels = map[string]string{"a": "1", "b": "2"}
		in.Annotations = map[string]string{"c": "3"}
		a := s.must(s.Create(s.ctx, in, create))
		s.wantOwners(a, manager+" Update: acquireTime annotations.. annotations.c holderIdentity labels.. "+
			"labels.a labels.b leaseDurationSeconds leaseTransitions renewTime")
		a.Labels = map[string]string{"b": "2"}
		a.Annotations = nil
		b := s.must(s.Update(s.ctx, a, update))
		s.want("labels", b.Labels, map[string]string{"b": "2"})
		s.want("annotations", b.Annotations, map[string]string(nil))
		s.wantNewer(a, b)
	}},
	{"update cannot change the creation time", func(s *session) {
		a := s.held()
		in := a.DeepCopy()
		in.CreationTimestamp = metav1.Time{Time: instant}
		in.Spec.HolderIdentity = ptr("b")
		s.want("creation", s.must(s.Update(s.ctx, in, update)).CreationTimestamp, a.CreationTimestamp)
	}},
	{"update as a dry run stores nothing", func(s *session) {
		a := s.held()
		in := a.DeepCopy()
		in.Spec.HolderIdentity = ptr("b")
		b := s.must(s.Update(s.ctx, in, metav1.UpdateOptions{DryRun: []string{"All"}}))
		s.want("holder", b.Spec.HolderIdentity, "b")
		s.wantSame(a, s.get())
	}},
}

var patchCases = []Case{
	{"merge patch of one field", func(s *session) {
		a := s.held()
		b := s.must(s.Patch(s.ctx, name, types.MergePatchType,
			[]byte(`{"metadata":{"resourceVersion":"`+a.ResourceVersion+`"},`+
				`"spec":{"renewTime":"2026-01-02T03:04:06.000000Z"}}`),
			metav1.PatchOptions{FieldManager: "other"}))
		s.wantNewer(a, b)
		s.wantSpec(b, `{"holderIdentity":"a","leaseDurationSeconds":15,"acquireTime":"2026-01-02T03:04:05.123456Z",`+
			`"renewTime":"2026-01-02T03:04:06.000000Z","leaseTransitions":1}`)
		s.wantOwners(b, manager+" Update: acquireTime holderIdentity leaseDurationSeconds leaseTransitions",
			"other Update: renewTime")
		s.wantSame(b, s.get())
	}},
	{"merge patch with a stale resourceVersion is a conflict", func(s *session) {
		a := s.held()
		b := s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`))
		_, err := s.merge(`{"metadata":{"resourceVersion":%q},"spec":{"holderIdentity":"c"}}`, a.ResourceVersion)
		s.wantStale(err)
		s.wantSame(b, s.get())
	}},
	{"merge patch with a stale resourceVersion is a conflict even if it would change nothing", func(s *session) {
		a := s.held()
		s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`))
		_, err := s.merge(`{"metadata":{"resourceVersion":%q},"spec":{"holderIdentity":"b"}}`, a.ResourceVersion)
		s.wantStale(err)
	}},
	{"merge patch without a resourceVersion is unconditional", func(s *session) {
		s.held()
		s.want("holder", s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`)).Spec.HolderIdentity, "b")
	}},
	{"merge patch with resourceVersion null, empty or 0 is invalid", func(s *session) {
		s.held()
		for _, rv := range []string{`null`, `""`, `"0"`} {
			_, err := s.merge(`{"metadata":{"resourceVersion":%s},"spec":{"holderIdentity":"b"}}`, rv)
			s.wantError(err, 422, metav1.StatusReasonInvalid, "must be specified for an update")
		}
	}},
	{"merge patch with nulls clears fields", func(s *session) {
		a := s.held()
		b := s.must(s.merge(`{"metadata":{"resourceVersion":%q},"spec":{"holderIdentity":null,"acquireTime":null,`+
			`"renewTime":null,"leaseDurationSeconds":null}}`, a.ResourceVersion))
		s.wantSpec(b, `{"leaseTransitions":1}`)
		s.wantOwners(b, manager+" Update: leaseTransitions")
	}},
	{"merge patch with spec null clears all of it", func(s *session) {
		s.held()
		b := s.must(s.merge(`{"spec":null}`))
		s.wantSpec(b, `{}`)
		s.wantOwners(b)
	}},
	{"merge patch without a change writes nothing", func(s *session) {
		a := s.held()
		s.wantSame(a, s.must(s.merge(`{"metadata":{"resourceVersion":%q},"spec":{"holderIdentity":"a",`+
			`"leaseTransitions":1}}`, a.ResourceVersion)))
		s.wantSame(a, s.must(s.merge(`{}`)))
		s.wantSame(a, s.must(s.merge(`{"spec":{"preferredHolder":null}}`)))
		s.wantSame(a, s.get())
	}},
	{"merge patch of a missing lease is NotFound", func(s *session) {
		for _, body := range []string{`{"spec":{"holderIdentity":"a"}}`,
			`{"metadata":{"resourceVersion":"1"},"spec":{"holderIdentity":"a"}}`, `{"metadata":{"uid":"1"}}`, `{}`} {
			_, err := s.merge("%s", body)
			s.wantError(err, 404, metav1.StatusReasonNotFound, `leases.coordination.k8s.io "lease" not found`)
		}
	}},
	{"merge patch with another uid is invalid, a conflict only if the resourceVersion is stale", func(s *session) {
		s.held()
		_, err := s.merge(`{"metadata":{"uid":"other"},"spec":{"holderIdentity":"b"}}`)
		s.wantError(err, 422, metav1.StatusReasonInvalid, `metadata.uid: Invalid value: "other": field is immutable`)
		_, err = s.merge(`{"metadata":{"uid":"other","resourceVersion":"1"},"spec":{"holderIdentity":"b"}}`)
		s.wantStale(err)
	}},
	{"merge patch with the right uid succeeds", func(s *session) {
		a := s.held()
		s.must(s.merge(`{"metadata":{"uid":%q,"resourceVersion":%q},"spec":{"holderIdentity":"b"}}`, a.UID,
			a.ResourceVersion))
	}},
	{"merge patch of another name or namespace is a bad request", func(s *session) {
		s.held()
		_, err := s.merge(`{"metadata":{"name":"other"}}`)
		s.wantError(err, 400, metav1.StatusReasonBadRequest,
			"the name of the object (other) does not match the name on the URL (lease)")
		_, err = s.merge(`{"metadata":{"namespace":"other"}}`)
		s.wantError(err, 400, metav1.StatusReasonBadRequest, "namespace")
	}},
	{"merge patch drops unknown fields", func(s *session) {
		a := s.held()
		s.wantSame(a, s.must(s.merge(`{"spec":{"color":"red"},"status":{}}`)))
		b := s.must(s.merge(`{"spec":{"color":"red","holderIdentity":"b"}}`))
		s.want("holder", b.Spec.HolderIdentity, "b")
	}},
	{"merge patch with strict validation rejects unknown fields", func(s *session) {
		s.held()
		_, err := s.Patch(s.ctx, name, types.MergePatchType, []byte(`{"spec":{"color":"red"}}`),
			metav1.PatchOptions{FieldValidation: "Strict"})
		s.wantError(err, 422, metav1.StatusReasonInvalid, `unknown field "spec.color"`)
	}},
	{"merge patch with a value of the wrong type is invalid", func(s *session) {
		s.held()
		for _, body := range []string{`{"spec":{"leaseDurationSeconds":"15"}}`, `{"spec":{"leaseDurationSeconds":1.5}}`,
			`{"spec":{"leaseDurationSeconds":4294967296}}`,
			`{"spec":{"holderIdentity":1}}`, `{"spec":{"renewTime":"yesterday"}}`, `{"spec":[]}`} {
			_, err := s.merge("%s", body)
			s.wantError(err, 422, metav1.StatusReasonInvalid, "patch: Invalid value")
		}
	}},
	{"merge patch that is no object is a bad request", func(s *session) {
		s.held()
		for _, body := range []string{`{`, `[]`, `1`} {
			_, err := s.merge("%s", body)
			s.wantError(err, 400, metav1.StatusReasonBadRequest)
		}
	}},
	{"merge patch may write times in other zones, with six decimals exactly", func(s *session) {
		s.held()
		for _, short := range []string{"2026-01-02T03:04:06Z", "2026-01-02T03:04:06.5Z",
			"2026-01-02T03:04:06.500000000Z"} {
			_, err := s.merge(`{"spec":{"renewTime":%q}}`, short)
			s.wantError(err, 422, metav1.StatusReasonInvalid, "parsing time")
		}
		b := s.must(s.merge(`{"spec":{"renewTime":"2026-01-02T05:04:06.500000+02:00"}}`))
		if want := time.Date(2026, 1, 2, 3, 4, 6, 5e8, time.UTC); !b.Spec.RenewTime.Time.Equal(want) {
			s.Errorf("got %v, want %v", b.Spec.RenewTime, want)
		}
	}},
	{"merge patch of labels leaves other metadata alone", func(s *session) {
		in := held()
		in.Labels = map[string]string{"a": "1", "b": "2"}
		in.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: "u"}}
		s.must(s.Create(s.ctx, in, create))
		b := s.must(s.merge(`{"metadata":{"labels":{"a":null,"c":"3"}}}`))
		s.want("labels", b.Labels, map[string]string{"b": "2", "c": "3"})
		s.want("owners", b.OwnerReferences, in.OwnerReferences)
		s.wantSpec(b, heldSpec)
		c := s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`))
		s.want("labels", c.Labels, b.Labels)
	}},
	{"force is not for merge patches", func(s *session) {
		s.held()
		_, err := s.Patch(s.ctx, name, types.MergePatchType, []byte(`{}`), metav1.PatchOptions{Force: ptr(true)})
		s.wantError(err, 422, metav1.StatusReasonInvalid, "may not be specified for non-apply patch")
	}},
	{"strategic patch", func(s *session) {
		a := s.held()
		b, err := s.Patch(s.ctx, name, types.StrategicMergePatchType,
			[]byte(`{"metadata":{"resourceVersion":"`+a.ResourceVersion+`","labels":{"a":"1"}},`+
				`"spec":{"holderIdentity":null,"renewTime":"2026-01-02T03:04:06.000000Z"}}`), patch)
		s.must(b, err)
		s.wantSpec(b, `{"leaseDurationSeconds":15,"acquireTime":"2026-01-02T03:04:05.123456Z",`+
			`"renewTime":"2026-01-02T03:04:06.000000Z","leaseTransitions":1}`)
		s.want("labels", b.Labels, map[string]string{"a": "1"})
		_, err = s.Patch(s.ctx, name, types.StrategicMergePatchType,
			[]byte(`{"metadata":{"resourceVersion":"`+a.ResourceVersion+`"}}`), patch)
		s.wantStale(err)
	}},
	{"strategic patch of a missing lease is NotFound", func(s *session) {
		_, err := s.Patch(s.ctx, name, types.StrategicMergePatchType, []byte(`{"spec":{"holderIdentity":"a"}}`), patch)
		s.wantError(err, 404, metav1.StatusReasonNotFound)
	}},
	{"strategic patch of the wrong type is invalid", func(s *session) {
		s.held()
		_, err := s.Patch(s.ctx, name, types.StrategicMergePatchType,
			[]byte(`{"spec":{"leaseDurationSeconds":"15"}}`), patch)
		s.wantError(err, 422, metav1.StatusReasonInvalid, "patch: Invalid value")
	}},
	{"an unknown kind of patch is unsupported", func(s *session) {
		s.held()
		_, err := s.Patch(s.ctx, name, "application/nonsense", []byte(`{}`), patch)
		s.wantError(err, 415, metav1.StatusReasonUnsupportedMediaType)
	}},
}

var deleteCases = []Case{
	{"delete", func(s *session) {
		s.held()
		if err := s.Delete(s.ctx, name, metav1.DeleteOptions{}); err != nil {
			s.Fatal(err)
		}
		_, err := s.Get(s.ctx, name, metav1.GetOptions{})
		s.wantError(err, 404, metav1.StatusReasonNotFound, `leases.coordination.k8s.io "lease" not found`)
		s.wantError(s.Delete(s.ctx, name, metav1.DeleteOptions{}), 404, metav1.StatusReasonNotFound)
	}},
	{"delete minds its preconditions", func(s *session) {
		a := s.held()
		b := s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`))
		err := s.Delete(s.ctx, name,
			metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: ptr(types.UID("other"))}})
		s.wantError(err, 409, metav1.StatusReasonConflict,
			"the UID in the precondition (other) does not match the UID in record")
		err = s.Delete(s.ctx, name,
			metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &a.UID,
				ResourceVersion: &a.ResourceVersion}})
		s.wantError(err, 409, metav1.StatusReasonConflict,
			"the ResourceVersion in the precondition ("+a.ResourceVersion+") does not match the ResourceVersion "+
				"in record")
		s.wantSame(b, s.get())
		if err := s.Delete(s.ctx, name,
			metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &b.UID,
				ResourceVersion: &b.ResourceVersion}}); err != nil {
			s.Error(err)
		}
	}},
	{"delete waits for finalizers", func(s *session) {
		in := held()
		in.Finalizers = []string{"example.com/wait"}
		s.must(s.Create(s.ctx, in, create))
		if err := s.Delete(s.ctx, name, metav1.DeleteOptions{}); err != nil {
			s.Fatal(err)
		}
		l := s.get()
		if l.DeletionTimestamp == nil {
			s.Fatal("no deletionTimestamp")
		}
		s.must(s.merge(`{"spec":{"holderIdentity":"b"}}`))
		s.must(s.merge(`{"metadata":{"finalizers":null}}`))
		_, err := s.Get(s.ctx, name, metav1.GetOptions{})
		s.wantError(err, 404, metav1.StatusReasonNotFound)
	}},
	{"delete as a dry run deletes nothing", func(s *session) {
		a := s.held()
		if err := s.Delete(s.ctx, name, metav1.DeleteOptions{DryRun: []string{"All"}}); err != nil {
			s.Fatal(err)
		}
		s.wantSame(a, s.get())
	}},
	{"delete of a collection goes by labels", func(s *session) {
		s.held()
		in := held()
		in.Name, in.Labels = "labelled", map[string]string{"a": "1"}
		s.must(s.Create(s.ctx, in, create))
		if err := s.DeleteCollection(s.ctx, metav1.DeleteOptions{},
			metav1.ListOptions{LabelSelector: "a=1"}); err != nil {
			s.Fatal(err)
		}
		list, err := s.List(s.ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) != 1 || list.Items[0].Name != name {
			s.Errorf("got %s, %v; want the lease without the label", show(list), err)
		}
	}},
}
