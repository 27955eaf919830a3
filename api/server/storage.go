package server

import "github.com/nextstack/nextstack/api"

func (s *Server) routeProjects() { readable[api.Project](s) }

func (s *Server) routeStorage() {
	readable[api.Pool](s)
	creatable(s, api.KindPool, "The directory is prepared on every agent of the pool.", Admission.CreatePool)
	updatable(s, api.KindPool, Admission.UpdatePool)
	deletable(s, api.KindPool, "It must hold no volumes.", Admission.DeletePool)

	s.routeImages()
	s.routeVolumes()
	s.routeCheckpoints()
}
