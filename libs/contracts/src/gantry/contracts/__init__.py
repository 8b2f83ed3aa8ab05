"""The wire contracts: one generated module per file of ``proto/``, at the same path below this package.

``proto/containerd/services/tasks/v1/tasks.proto`` becomes ``gantry.contracts.containerd.services.tasks.v1.tasks_pb2`` and, since it has a
service, ``...tasks_pb2_grpc``. Importing a ``_pb2`` module never imports grpc.
"""
